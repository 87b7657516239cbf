//! SPEC.md cannot rot: its tables are read here and held against the real encoder and decoder.

use ballast_protocol::{
    DEFAULT_PORT, FrameError, GuestMessage, MAX_FRAME, MAX_PAYLOAD, PREFIX, VERSION, decode, encode,
};
use std::collections::BTreeMap;

mod largest;
mod table;

const SPEC: &str = include_str!("../SPEC.md");

/// The rows of the table whose first heading is `heading`, cells trimmed and without backticks.
fn rows(heading: &str) -> Vec<Vec<String>> {
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
    };
    let rows: Vec<_> = SPEC
        .lines()
        .skip_while(|line| !(line.starts_with('|') && cells(line)[0] == heading))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(cells)
        .collect();
    assert!(!rows.is_empty(), "SPEC.md has no table `{heading}`");
    rows
}

fn bytes(hex: &str) -> Vec<u8> {
    hex.split(' ').map(|b| u8::from_str_radix(b, 16).unwrap_or_else(|e| panic!("SPEC.md: `{hex}`: {e}"))).collect()
}

/// The payloads of all samples as the encoder makes them today, by name.
fn samples() -> BTreeMap<&'static str, Vec<u8>> {
    let mut buffer = [0; MAX_FRAME];
    let mut samples = BTreeMap::new();
    for entry in table::guest() {
        let frame = encode(&entry.message, &mut buffer).expect("a sample fits a frame");
        assert!(entry.in_place && frame.len() == PREFIX + entry.hex.len() / 2, "{}: see tests/bytes.rs", entry.name);
        samples.insert(entry.name, frame[PREFIX..].to_vec());
    }
    for entry in table::host() {
        let frame = encode(&entry.message, &mut buffer).expect("a sample fits a frame");
        assert!(entry.in_place && frame.len() == PREFIX + entry.hex.len() / 2, "{}: see tests/bytes.rs", entry.name);
        samples.insert(entry.name, frame[PREFIX..].to_vec());
    }
    samples
}

#[test]
fn the_samples_are_complete_and_as_encoded() {
    let mut samples = samples();
    for row in rows("Guest message").iter().chain(&rows("Host message")) {
        let encoded = samples.remove(row[0].as_str()).unwrap_or_else(|| panic!("no sample `{}`, or twice", row[0]));
        assert_eq!(bytes(&row[1]), encoded, "{}", row[0]);
    }
    assert!(samples.is_empty(), "SPEC.md lacks {:?}", samples.keys());
}

#[test]
fn the_frames_are_as_encoded() {
    let samples = samples();
    for row in rows("Frame of") {
        let payload = &samples[row[0].as_str()];
        let length = u16::try_from(payload.len()).unwrap().to_le_bytes();
        assert_eq!(bytes(&row[1]), [&length[..], payload].concat(), "{}", row[0]);
    }
}

#[test]
fn the_numbers_are_as_encoded() {
    for row in rows("Number of type u64") {
        let id = row[0].parse().unwrap();
        let payload = [&[3][..], &bytes(&row[1])].concat();
        assert_eq!(decode::<GuestMessage>(&payload), Ok(GuestMessage::Withdraw { id }), "{}", row[0]);
        let mut buffer = [0; MAX_FRAME];
        let frame = encode(&GuestMessage::Withdraw { id }, &mut buffer).unwrap();
        assert_eq!(frame[PREFIX..], payload, "{}", row[0]);
    }
}

#[test]
fn the_decoders_answers_are_as_specified() {
    for row in rows("Guest payload") {
        let answer = match decode::<GuestMessage>(&bytes(&row[0])) {
            Ok(_) => "accepted",
            Err(FrameError::Malformed(_)) => "malformed",
            Err(FrameError::Trailing(_)) => "trailing",
            Err(FrameError::Empty | FrameError::Oversized(_)) => "of the frame, not of the payload",
        };
        assert_eq!(answer, row[1], "{}", row[0]);
    }
}

#[test]
fn the_sizes_are_as_encoded() {
    let mut buffer = [0; MAX_FRAME];
    let mut real = Vec::new();
    for (kind, message) in largest::guest() {
        let frame = encode(&message, &mut buffer).expect("the largest fits a frame");
        real.push(vec![kind.to_owned(), "guest".to_owned(), (frame.len() - PREFIX).to_string()]);
    }
    for (kind, message) in largest::host() {
        let frame = encode(&message, &mut buffer).expect("the largest fits a frame");
        real.push(vec![kind.to_owned(), "host".to_owned(), (frame.len() - PREFIX).to_string()]);
    }
    assert_eq!(rows("Message"), real);
}

#[test]
fn the_constants_in_the_text_are_the_crates() {
    for text in [
        format!("port **{DEFAULT_PORT}**"),
        format!("`<path>_{DEFAULT_PORT}`"),
        format!("**{MAX_FRAME} bytes with its length**"),
        format!("a payload has 1 to {MAX_PAYLOAD}"),
        format!("This document is version **{VERSION}**"),
    ] {
        assert!(SPEC.contains(&text), "SPEC.md does not say `{text}`");
    }
}
