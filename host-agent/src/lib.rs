//! Ballast's host agent as a library, so that tests, benchmarks and the lab use the parts the daemon uses.
//!
//! ```text
//!   config -> daemon (planner, journal) -> session (one per guest)  <-vsock-> guest agent
//!                    |                  -> actuator (one per VM)    -> hypervisor (QMP, libvirt)
//!                    |  -> prober (one)               -> iperf3 in the guest
//!                    |-> control (an HTTP API)          replay, doctor: beside the daemon, not in it
//!                    '-> metrics, web                -> Prometheus, browsers
//! ```

#![deny(unsafe_code)]

pub mod actuator;
pub mod clock;
pub mod config;
pub mod control;
pub mod curve;
pub mod daemon;
pub mod doctor;
pub mod forecaster;
pub mod heap;
pub mod host_memory;
pub mod hypervisor;
pub mod journal;
pub mod logs;
pub mod metrics;
pub mod notify;
pub mod prober;
pub mod replay;
pub mod session;
pub mod show;
mod socket;
pub mod top;
pub mod transport;
pub mod web;

/// An error and all its causes in one line, for logs and journals.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
