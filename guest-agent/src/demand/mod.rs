//! Pending allocations: what the guest is about to use, from several sources, merged into demands.
//!
//! Each source is a pure judge of samples; [`Book`] holds what was asked of the host and what became of it.

mod book;
pub mod committed;
pub mod edges;
pub mod slack;

pub use book::{Book, Entry, State, Tally};
