//! How the bodies of a commit lie in its row: few as they came, many or large ones compressed.
//!
//! Webhook bodies say much the same again and again: a fifth is left of them, and what is left is written twice (log and
//! file) and synced. They are compressed in frames of whole bodies, so that one can be read without unpacking its commit.
//! LZ4 blocks: 0.5 us a KiB here, a quarter of what writing it takes.
//!
//! The column `bounds` has records of 12 bytes: a u32 and a u64, little endian. One a body: its length and its app. Where
//! the bodies are compressed, before those: [`PACKED`] and the number of frames, then one a frame: how many bytes it holds;
//! and of the u64 the lower half is how many they take in the column `bodies`, where the frames stand end to end, the upper
//! half a checksum of what they hold. A flipped bit would often be a frame of the right length with another sender in it.

use std::ops::Range;

use lz4_flex::block::{CompressTable, compress_into_with_table, decompress, get_maximum_output_size};

use crate::event::BODY_MAX;

/// Commits with fewer bytes of bodies are stored as they came: little is gained by them, and nobody waits for it.
const PACK_MIN: usize = 16 << 10;
/// Small bodies share a frame until it has so many bytes: few enough to read one of them in some microseconds.
const FRAME_BYTES: usize = 16 << 10;
/// No frame holds more.
const FRAME_MAX: usize = BODY_MAX + FRAME_BYTES;
/// A longer body has a frame of its own.
const LARGE: usize = 64 << 10;
/// Room that is kept from commit to commit, of each column.
const KEPT: usize = 1 << 20;
/// Stands where the length of the first body would; none is that long.
const PACKED: u32 = u32::MAX;
const RECORD: usize = 12;

/// Whether a body has a frame of its own.
pub fn is_large(body: &[u8]) -> bool {
    body.len() > LARGE
}

/// The columns of a commit while they are written; kept from commit to commit.
#[derive(Default)]
pub struct Frames {
    bounds: Vec<u8>,
    bodies: Vec<u8>,
    is_packed: bool,
    /// The bodies that are not large, end to end.
    small: Vec<u8>,
    table: CompressTable,
    /// Where a frame is made.
    room: Vec<u8>,
}

impl Frames {
    /// Lays out a commit's bodies, each with its app.
    pub fn lay_out<'a>(&mut self, bodies: impl Iterator<Item = (&'a [u8], u64)> + Clone) {
        let mut small = std::mem::take(&mut self.small);
        small.clear();
        small.shrink_to(KEPT);
        bodies
            .clone()
            .filter(|(body, _)| !is_large(body))
            .for_each(|(body, _)| small.extend_from_slice(body));
        self.bounds.clear();
        self.bounds.shrink_to(KEPT);
        self.bodies.clear();
        self.bodies.shrink_to(KEPT);
        self.room.truncate(KEPT);
        self.room.shrink_to_fit();
        self.is_packed = bodies.clone().map(|(body, _)| body.len()).sum::<usize>() >= PACK_MIN;
        if self.is_packed {
            push(&mut self.bounds, PACKED, 0);
            let (mut of_frame, mut rest) = (0, small.as_slice());
            for (body, _) in bodies.clone() {
                if of_frame >= FRAME_BYTES || (is_large(body) && of_frame > 0) {
                    rest = self.frame_of(rest, of_frame);
                    of_frame = 0;
                }
                if is_large(body) { self.frame(body) } else { of_frame += body.len() }
            }
            self.frame_of(rest, of_frame);
            let count = (self.bounds.len() / RECORD - 1) as u64;
            self.bounds[4..RECORD].copy_from_slice(&count.to_le_bytes());
        }
        bodies.for_each(|(body, app)| push(&mut self.bounds, body.len() as u32, app));
        self.small = small;
    }

    /// The column `bounds`.
    pub fn bounds(&self) -> &[u8] {
        &self.bounds
    }

    /// The column `bodies`.
    pub fn bodies(&self) -> &[u8] {
        if self.is_packed { &self.bodies } else { &self.small }
    }

    /// A frame of the first `length` bytes; returns the rest.
    fn frame_of<'s>(&mut self, small: &'s [u8], length: usize) -> &'s [u8] {
        let (raw, rest) = small.split_at(length);
        if length > 0 {
            self.frame(raw);
        }
        rest
    }

    fn frame(&mut self, raw: &[u8]) {
        let most = get_maximum_output_size(raw.len());
        if self.room.len() < most {
            self.room.resize(most, 0);
        }
        let length = compress_into_with_table(raw, &mut self.room, &mut self.table)
            .expect("there is room for the most that it can be");
        self.bodies.extend_from_slice(&self.room[..length]);
        push(&mut self.bounds, raw.len() as u32, sum(raw) << 32 | length as u64);
    }
}

/// Of 32 bits.
fn sum(raw: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(raw) >> 32
}

fn push(records: &mut Vec<u8>, a: u32, b: u64) {
    records.extend_from_slice(&a.to_le_bytes());
    records.extend_from_slice(&b.to_le_bytes());
}

fn records(bytes: &[u8]) -> impl Iterator<Item = (usize, u64)> + '_ {
    bytes.chunks_exact(RECORD).map(|record| {
        let (a, b) = record.split_at(4);
        (a.try_into().map_or(0, u32::from_le_bytes) as usize, b.try_into().map_or(0, u64::from_le_bytes))
    })
}

/// The column `bounds`, read.
#[derive(Clone, Copy)]
pub struct Bounds<'b> {
    frames: &'b [u8],
    bodies: &'b [u8],
}

/// The record of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    /// Unpacked.
    length: usize,
    stored: usize,
    sum: u64,
}

/// Where a body is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At {
    /// Of what has to be read of the column `bodies`.
    pub stored: Range<usize>,
    /// What that is once it is unpacked; `None`: it is stored as it came.
    frame: Option<Frame>,
    /// Where it is in that.
    within: Range<usize>,
}

impl<'b> Bounds<'b> {
    /// Takes a column apart; `None` if it can't be right.
    pub fn read(column: &'b [u8]) -> Option<Self> {
        let (is_packed, count) = match records(column).next() {
            Some((mark, count)) if mark == PACKED as usize => (true, usize::try_from(count).ok()?),
            _ => (false, 0),
        };
        let rest = &column[if is_packed { RECORD } else { 0 }..];
        let (frames, bodies) = rest.split_at_checked(count.checked_mul(RECORD)?)?;
        Some(Self { frames, bodies })
    }

    /// Where each body is among all of them, unpacked, and its app.
    pub fn bodies(self) -> impl Iterator<Item = (Range<usize>, u64)> + 'b {
        records(self.bodies).scan(0, |end, (length, app)| {
            let start = *end;
            *end += length;
            Some((start..*end, app))
        })
    }

    fn frames(self) -> impl Iterator<Item = Frame> + 'b {
        let frame =
            |(length, of)| Frame { length, stored: (of & u64::from(u32::MAX)) as usize, sum: of >> 32 };
        records(self.frames).map(frame)
    }

    /// Where body number `nth` is, and its app.
    pub fn body(self, nth: u32) -> Option<(At, u64)> {
        let (body, app) = self.bodies().nth(nth as usize)?;
        if self.frames.is_empty() {
            let within = 0..body.len();
            return Some((At { stored: body, frame: None, within }, app));
        }
        let (mut raw, mut stored) = (0, 0);
        for frame in self.frames() {
            let end = raw + frame.length;
            if body.start < end || body.is_empty() && body.start == end {
                let within = body.start.checked_sub(raw)?..body.end - raw;
                return Some((At { stored: stored..stored + frame.stored, frame: Some(frame), within }, app));
            }
            raw = end;
            stored += frame.stored;
        }
        None
    }

    /// All bodies end to end, from the column `bodies`, and where among them something is that can't be right.
    pub fn unpack(self, column: Vec<u8>) -> (Vec<u8>, Vec<Range<usize>>) {
        let length = self.bodies().last().map_or(0, |(body, _)| body.end);
        let (mut all, mut damaged) = (Vec::new(), Vec::new());
        let mut rest = column.as_slice();
        for frame in self.frames() {
            let (stored, behind) = rest.split_at(frame.stored.min(rest.len()));
            rest = behind;
            let start = all.len();
            match unpacked(stored, frame) {
                Some(raw) => all.extend(raw),
                None => {
                    all.resize(start + frame.length.min(FRAME_MAX), 0);
                    damaged.push(start..all.len());
                }
            }
        }
        if self.frames.is_empty() {
            all = column;
        }
        if all.len() < length {
            damaged.push(all.len()..length);
        }
        (all, damaged)
    }
}

impl At {
    /// The body, from the bytes at `stored`; `None` if they can't be right.
    pub fn body(&self, stored: Vec<u8>) -> Option<Vec<u8>> {
        let Some(frame) = self.frame else { return (stored.len() == self.within.len()).then_some(stored) };
        let mut raw = unpacked(&stored, frame)?;
        raw.truncate(self.within.end);
        (raw.len() == self.within.end).then(|| raw.split_off(self.within.start))
    }
}

fn unpacked(stored: &[u8], frame: Frame) -> Option<Vec<u8>> {
    if frame.length > FRAME_MAX || stored.len() != frame.stored {
        return None;
    }
    decompress(stored, frame.length).ok().filter(|raw| raw.len() == frame.length && sum(raw) == frame.sum)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `bounds` and `bodies`, as `frames` lays them out.
    fn laid_out(frames: &mut Frames, bodies: &[Vec<u8>]) -> (Vec<u8>, Vec<u8>) {
        frames.lay_out(bodies.iter().enumerate().map(|(nth, body)| (&body[..], nth as u64)));
        (frames.bounds().to_vec(), frames.bodies().to_vec())
    }

    fn columns(bodies: &[Vec<u8>]) -> (Vec<u8>, Vec<u8>) {
        laid_out(&mut Frames::default(), bodies)
    }

    fn body() -> impl Strategy<Value = Vec<u8>> {
        let text = prop_oneof![Just("{\"object\":\"whatsapp\"}"), Just("a"), Just("")];
        prop_oneof![
            (text, 0..60_usize).prop_map(|(text, times)| text.repeat(times).into_bytes()),
            proptest::collection::vec(any::<u8>(), 0..20_000),
            (LARGE - 2..LARGE + 20_000, any::<u8>()).prop_map(|(length, byte)| vec![byte; length]),
        ]
    }

    proptest! {
        #[test]
        fn every_body_reads_back(
            before in proptest::collection::vec(body(), 0..40),
            bodies in proptest::collection::vec(body(), 0..40),
        ) {
            let mut frames = Frames::default();
            // nothing of the commit before may be left
            laid_out(&mut frames, &before);
            let (bounds, column) = laid_out(&mut frames, &bodies);
            let bounds = Bounds::read(&bounds).expect("ours");
            prop_assert_eq!(bounds.bodies().count(), bodies.len());
            for (nth, body) in bodies.iter().enumerate() {
                let (at, app) = bounds.body(nth as u32).expect("it is there");
                prop_assert_eq!(app, nth as u64);
                let read = at.body(column[at.stored.clone()].to_vec());
                prop_assert_eq!(read.as_ref(), Some(body));
            }
            prop_assert_eq!(bounds.body(bodies.len() as u32), None);
            prop_assert_eq!(bounds.unpack(column), (bodies.concat(), Vec::new()));
        }

        /// A flipped bit of a frame is seen: what is read is right or known to be damaged.
        #[test]
        fn a_flipped_bit_is_seen(bodies in proptest::collection::vec(body(), 1..20), at: prop::sample::Index, bit in 0..8) {
            let (bounds, mut column) = columns(&bodies);
            prop_assume!(bodies.iter().map(Vec::len).sum::<usize>() >= PACK_MIN);
            let nth = at.index(column.len());
            column[nth] ^= 1_u8 << bit;
            let bounds = Bounds::read(&bounds).expect("ours");
            let read: Vec<_> = (0..bodies.len() as u32)
                .map(|nth| bounds.body(nth).and_then(|(at, _)| at.body(column[at.stored.clone()].to_vec())))
                .collect();
            prop_assert!(read.iter().any(Option::is_none));
            for (read, body) in read.iter().zip(&bodies) {
                prop_assert!(read.as_ref().is_none_or(|read| read == body));
            }
            let (all, damaged) = bounds.unpack(column);
            prop_assert_eq!(damaged.len(), 1);
            for ((body, _), right) in bounds.bodies().zip(&bodies) {
                if !damaged[0].contains(&body.start) {
                    prop_assert_eq!(&all[body], &right[..]);
                }
            }
        }

        #[test]
        fn damage_is_no_panic(
            bodies in proptest::collection::vec(body(), 1..5),
            at: prop::sample::Index,
            byte: u8,
            cut: prop::sample::Index,
        ) {
            let (mut bounds, mut column) = columns(&bodies);
            let nth = at.index(bounds.len() + column.len());
            match nth.checked_sub(bounds.len()) {
                None => bounds[nth] = byte,
                Some(nth) => column[nth] = byte,
            }
            column.truncate(cut.index(column.len() + 1));
            if let Some(bounds) = Bounds::read(&bounds) {
                for nth in 0..bodies.len() as u32 {
                    let Some((at, _)) = bounds.body(nth) else { continue };
                    let stored = column.get(at.stored.clone()).unwrap_or_default().to_vec();
                    let _ = at.body(stored);
                }
                let _ = bounds.unpack(column);
            }
        }
    }

    #[test]
    fn bodies_that_repeat_themselves_take_a_fraction() {
        let bodies =
            (0..800).map(|n| format!(r#"{{"object":"whatsapp_business_account","time":{n}}}"#).into_bytes());
        let bodies: Vec<Vec<u8>> = bodies.collect();
        let (_, packed) = columns(&bodies);
        let plain = bodies.concat().len();
        assert!(packed.len() * 3 < plain, "{} of {plain}", packed.len());
    }
}
