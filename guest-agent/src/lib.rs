//! Ballast's guest agent: one small process that tells the host about memory that is about to be used.
//!
//! ```text
//!   sysinfo, /proc, cgroups --sensors--> demand (pure) --> agent (the one loop) <--link--> host agent
//!   `ballast-guest need`    --Unix socket-------------------^  |
//!                                                              +--> absorber, reclaim (cgroup files)
//! ```
//!
//! The binary must report while the guest is dying: its memory is locked, the OOM killer passes it by, and the hot
//! path (a look at free memory every few milliseconds, a demand, an answer) allocates nothing.

pub mod absorber;
pub mod agent;
pub mod cli;
pub mod clock;
pub mod config;
pub mod demand;
pub mod link;
pub mod log;
pub mod need;
pub mod notify;
pub mod process;
pub mod reclaim;
pub mod sensors;
pub mod serve;
pub mod status;
pub mod trigger;
