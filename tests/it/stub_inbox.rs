//! An inbox with nothing in it, that forgets what it is told. Only its tickets are given: the tests of the edge
//! and the benches have their own.

use std::sync::Arc;
use std::time::Duration;

use whatsapp_webhook::event::{ItemId, Said};
use whatsapp_webhook::failure::{Failure, Reason};
use whatsapp_webhook::inbox::{
    Counts, Evidence, Feed, Inbox, NewTurn, OpenTurn, Page, Position, Refusal, State, Ticket, TurnId,
};

/// Makes the tickets.
pub struct StubInbox<F>(pub F);

impl<F: Fn() -> Box<dyn Ticket> + Send + Sync + 'static> Inbox for StubInbox<F> {
    fn ticket(&self, _: usize) -> Box<dyn Ticket> {
        self.0()
    }
    fn unhealthy(&self) -> Option<Refusal> {
        None
    }
    fn counts(&self) -> Counts {
        Counts::default()
    }
    fn feed(&self, _: Arc<dyn Feed>) {}
    fn open_numbers(&self) -> Result<(Vec<u64>, Position), Failure> {
        Ok((Vec::new(), Position::default()))
    }
    fn pending(&self, _: u64, after: Position, _: usize) -> Result<Page, Failure> {
        Ok(Page { works: Vec::new(), covered: after })
    }
    fn open_turns(&self, _: TurnId, _: usize) -> Result<Vec<OpenTurn>, Failure> {
        Ok(Vec::new())
    }
    fn history(&self, _: &str, _: usize) -> Result<Vec<Said>, Failure> {
        Ok(Vec::new())
    }
    fn answered(&self, _: NewTurn) -> Result<OpenTurn, Failure> {
        unreachable!("nothing is answered")
    }
    fn sending(&self, _: &str, _: u64) -> Result<Option<Evidence>, Failure> {
        Ok(None)
    }
    fn sent(&self, _: &str, _: &str) {}
    fn unsent(&self, _: &str) {}
    fn reply_dead(&self, _: &str, _: &Reason, _: &str) {}
    fn evidence(&self, _: &str, _: Duration) -> Option<Evidence> {
        None
    }
    fn forget(&self, _: &str) {}
    fn settle(&self, _: &[ItemId], _: State, _: &Reason, _: &str) {}
    fn close(&self) -> Result<(), Failure> {
        Ok(())
    }
}
