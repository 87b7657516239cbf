//! What a message costs to make and to read: the largest sample of each kind from the protocol's own table.

// The table that pins the encoding; the fields that only those tests read stay unread here.
#[allow(dead_code)]
#[path = "../../../../../protocol/tests/table/mod.rs"]
mod table;

use super::Quantiles;
use ballast_protocol::{MAX_FRAME, PREFIX, decode, encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::hint::black_box;
use std::mem::discriminant;
use std::time::Instant;

/// One look at the clock costs as much as a small message, so that many are timed at once.
const BATCH: u32 = 100;
const BATCHES: usize = 1_000;
/// Caches and branch predictors settle.
const WARM_UP: usize = 100;

/// One kind of message; times in nanoseconds.
#[derive(Debug, Serialize)]
pub struct Message {
    pub kind: String,
    /// With its prefix.
    pub bytes: usize,
    pub encode_ns: f64,
    pub decode_ns: f64,
}

pub fn measure() -> Vec<Message> {
    let mut all = kinds("guest", table::guest());
    all.extend(kinds("host", table::host()));
    all
}

/// The largest sample of each variant.
fn kinds<M: Serialize + DeserializeOwned>(side: &str, entries: Vec<table::Entry<M>>) -> Vec<Message> {
    let mut largest: Vec<table::Entry<M>> = Vec::new();
    for entry in entries {
        match largest.iter_mut().find(|e| discriminant(&e.message) == discriminant(&entry.message)) {
            Some(known) if known.hex.len() < entry.hex.len() => *known = entry,
            Some(_) => {}
            None => largest.push(entry),
        }
    }
    largest.iter().map(|entry| one(format!("{side}: {}", entry.name), &entry.message)).collect()
}

fn one<M: Serialize + DeserializeOwned>(kind: String, message: &M) -> Message {
    let mut buffer = [0; MAX_FRAME];
    let encode_ns = time(|| {
        black_box(encode(black_box(message), &mut buffer).is_ok());
    });
    let mut buffer = [0; MAX_FRAME];
    let frame = encode(message, &mut buffer).expect("the table's messages fit: its own tests say so");
    let decode_ns = time(|| {
        black_box(decode::<M>(black_box(&frame[PREFIX..])).is_ok());
    });
    Message { kind, bytes: frame.len(), encode_ns, decode_ns }
}

fn time(mut once: impl FnMut()) -> f64 {
    let mut batch = || {
        let begun = Instant::now();
        for _ in 0..BATCH {
            once();
        }
        begun.elapsed().as_nanos() as f64 / f64::from(BATCH)
    };
    for _ in 0..WARM_UP {
        batch();
    }
    Quantiles::of((0..BATCHES).map(|_| batch()).collect()).expect("there are batches").median
}
