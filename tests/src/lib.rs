//! The harness: real guests that tests and experiments can boot, clone, command and measure.
//!
//! ```text
//!   test ── Machine ── qemu, its guest memory (a memfd: `resident()`), vsock device, two QMP monitors
//!     │        └────── Guest ── serial line 1 ── ballast-testd ── workloads in workload.slice
//!     │        └────── Network ── a private one, with iperf3 on it
//!     ├── HostAgent ── ballast-host run --config ... ── the machine's second QMP monitor, its vsock socket
//!     └── Fleet ── a thousand VMs without QEMUs, for the same HostAgent
//! ```
//!
//! Nothing survives the test that started it: children die with their parent, guest memory has no name, and what
//! is left in `/tmp` by a killed process is swept by the next one.

#![forbid(unsafe_code)]

pub mod wire;

#[cfg(feature = "lab")]
mod accel;
#[cfg(feature = "lab")]
mod children;
#[cfg(feature = "lab")]
pub mod fleet;
#[cfg(feature = "lab")]
mod guest;
#[cfg(feature = "lab")]
mod host_agent;
#[cfg(feature = "lab")]
pub mod interrupt;
#[cfg(feature = "lab")]
pub mod lab;
#[cfg(feature = "lab")]
mod machine;
#[cfg(feature = "lab")]
mod memory;
#[cfg(feature = "lab")]
mod network;
#[cfg(feature = "lab")]
pub mod paths;
#[cfg(feature = "lab")]
mod qmp;
#[cfg(feature = "lab")]
mod vsock;
#[cfg(feature = "lab")]
mod workload;

#[cfg(feature = "lab")]
pub use accel::Accel;
#[cfg(feature = "lab")]
pub use children::{Process, Turn, bursting, log_tail, sweep};
#[cfg(feature = "lab")]
pub use guest::{Guest, Pending};
#[cfg(feature = "lab")]
pub use host_agent::HostAgent;
#[cfg(feature = "lab")]
pub use machine::{Balloon, Machine, MachineBuilder, NOISE_FILE};
#[cfg(feature = "lab")]
pub use network::{Link, Network};
#[cfg(feature = "lab")]
pub use qmp::Qmp;
#[cfg(feature = "lab")]
pub use vsock::{Vsock, kernel_device};
#[cfg(feature = "lab")]
pub use workload::DATA_FILE;
