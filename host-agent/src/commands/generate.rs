//! Man pages and shell completions, made from the very definition that parses the command line, so that they cannot say
//! anything else. For `make deb`: `ballast-host generate` is hidden. `guest-agent/examples/generate.rs` includes this
//! file, because the guest's binary has no room for it.

use clap::{Command, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// Both agents are for administrators (man-pages(7)).
const SECTION: &str = "8";

/// What can be generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// A page for the program and one for each of its commands.
    Man,
    /// For bash, zsh and fish.
    Completions,
}

/// A section that only the program's own page has: its heading, then terms and what they mean.
pub type Section<'a> = (&'a str, &'a [(&'a str, &'a str)]);

/// Writes the files into `directory`, which is made if need be.
///
/// # Errors
/// A file cannot be written.
pub fn write(command: Command, what: What, directory: &Path, more: &[Section<'_>]) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    // `help` is for the terminal; a page of its own would say nothing.
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let name = command.get_name().to_owned();
    match what {
        What::Man => {
            let source = format!("{name} {}", command.get_version().unwrap_or_default());
            page(&command, &source, directory, more)?;
            let whole = format!("{name}({SECTION})");
            pages_below(&command, &source, directory, &[("SEE ALSO", &[(&whole, "The program as a whole.")])])?;
        }
        What::Completions => {
            for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
                clap_complete::generate_to(shell, &mut command, &name, directory)?;
            }
        }
    }
    Ok(())
}

fn pages_below(command: &Command, source: &str, directory: &Path, more: &[Section<'_>]) -> io::Result<()> {
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        page(sub, source, directory, more)?;
        pages_below(sub, source, directory, more)?;
    }
    Ok(())
}

fn page(command: &Command, source: &str, directory: &Path, more: &[Section<'_>]) -> io::Result<()> {
    let page = Man::new(command.clone()).section(SECTION).source(source).manual("Ballast");
    let mut file = io::BufWriter::new(File::create(directory.join(page.get_filename()))?);
    page.render(&mut file)?;
    for (heading, terms) in more {
        let mut roff = Roff::new();
        roff.control("SH", [*heading]);
        for (term, meaning) in *terms {
            roff.control("TP", []);
            roff.text([bold(*term)]);
            roff.text([roman(*meaning)]);
        }
        roff.to_writer(&mut file)?;
    }
    file.flush()
}
