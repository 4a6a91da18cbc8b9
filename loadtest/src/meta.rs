//! The simulated Meta of the load: knows the businesses, and enters every reply into the ledger.

use std::sync::Arc;

use whatsapp_webhook::sandbox::{Number, Options, Sandbox};
use whatsapp_webhook::secret::Secret;

use crate::drive::{self, Load};
use crate::names;

/// Messages that the sandbox itself keeps: the ledger has what counts.
const KEEP: usize = 16;

/// Listens on a free port.
pub fn start(businesses: u32, app_secret: &str, receipts: bool) -> Result<Sandbox, String> {
    let number = |business| Number {
        phone_number_id: names::number(business),
        waba_id: names::waba(business),
        display_phone_number: names::display(business),
        token: Secret::new(names::token(business)),
    };
    let numbers = (0..businesses).map(number).collect();
    let options =
        Options { statuses: receipts, keep: KEEP, ..Options::new(Secret::new(app_secret), numbers) };
    Sandbox::start(options).map_err(|e| format!("the simulated Graph: {e}"))
}

/// From now on replies are entered into the load's ledger.
pub fn follow(sandbox: &Sandbox, load: &Arc<Load>) {
    let load = Arc::clone(load);
    sandbox.on_sent(Box::new(move |sent| {
        let text = sent.text().unwrap_or_default();
        load.ledger.replied(&sent.phone_number_id, &sent.to, &text, drive::now_us(), |us| {
            load.answers.record(sent.nth as usize, us);
        });
    }));
}
