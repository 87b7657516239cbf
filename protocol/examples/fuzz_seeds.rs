//! Writes the seed corpus of the fuzz targets from the byte tables: `fuzz/README.md` says how it is used.
//!
//! An example and not part of the fuzz workspace, so that every `cargo test` compiles it.

use ballast_protocol::{MAX_FRAME, PREFIX, encode};
use serde::Serialize;
use std::io;
use std::path::{Path, PathBuf};

#[path = "../tests/table/mod.rs"]
mod table;

/// One file per message, named like its row; returns all frames in a row.
fn write<M: Serialize>(folder: &Path, entries: &[table::Entry<M>]) -> io::Result<Vec<u8>> {
    std::fs::create_dir_all(folder)?;
    let mut stream = Vec::new();
    for entry in entries.iter().filter(|e| e.in_place) {
        let mut buffer = [0; MAX_FRAME];
        let frame = encode(&entry.message, &mut buffer).map_err(io::Error::other)?;
        // Rows whose pinned bytes are not the encoder's are for tests to report, not for seeds.
        debug_assert_eq!(2 * (frame.len() - PREFIX), entry.hex.len());
        std::fs::write(folder.join(entry.name), &frame[PREFIX..])?;
        stream.extend_from_slice(frame);
    }
    Ok(stream)
}

fn main() -> io::Result<()> {
    let corpus = std::env::args_os()
        .nth(1)
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus"), PathBuf::from);
    let stream = write(&corpus.join("decode_guest"), &table::guest())?;
    write(&corpus.join("decode_host"), &table::host())?;
    let deframe = corpus.join("deframe");
    std::fs::create_dir_all(&deframe)?;
    for piece in [0u8, 6, 99, 255] {
        std::fs::write(deframe.join(format!("guest-{piece}")), [&[piece][..], &stream].concat())?;
    }
    println!("seeds are in {}", corpus.display());
    Ok(())
}
