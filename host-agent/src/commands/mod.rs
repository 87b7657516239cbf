//! The commands that are more than a question to the daemon.

pub mod generate;
