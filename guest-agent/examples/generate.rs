//! Man pages and shell completions of `ballast-guest`, for packagers:
//! `cargo run -p ballast-guest --example generate -- man|completions FOLDER`. An example, because what makes them is a
//! quarter of what the binary may weigh.

use anyhow::Context;
use ballast_guest::cli::Cli;
use ballast_guest::config::{DEFAULT_PATH, DEFAULT_SOCKET};
use clap::{CommandFactory, ValueEnum};
use std::path::PathBuf;

/// The host agent makes its own by the same code.
#[path = "../../host-agent/src/commands/generate.rs"]
mod generate;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: generate man|completions FOLDER";
    let what = args.next().and_then(|what| generate::What::from_str(&what, false).ok()).context(usage)?;
    let directory: PathBuf = args.next().context(usage)?.into();
    let manual: &[generate::Section<'_>] = &[
        ("ENVIRONMENT", &[("BALLAST_LOG", "What the agent logs: error, warn, info (the default) or debug.")]),
        (
            "FILES",
            &[
                (DEFAULT_PATH, "The configuration, if wanted: /usr/share/doc/ballast-guest/examples/guest.toml."),
                (DEFAULT_SOCKET, "Where need and status find the agent; for everybody."),
            ],
        ),
        ("SEE ALSO", &[("ballast-host(8), systemctl(1)", "The agent on the host, the service.")]),
    ];
    generate::write(Cli::command(), what, &directory, manual)
        .with_context(|| format!("writing into {}", directory.display()))
}
