//! The lab: what does a control law cost a workload, and what does it save?
//!
//! ```text
//!   experiment file ── block: all arms' guests alive at once ── blocks/*.json ── summary.json ── report.html
//!                        │  one arm after the other runs a phase, in an order shuffled by the seed
//!                        └─ a look at every guest twice a second
//! ```
//! Paired and interleaved, because identical runs on these machines differ by 22 % (DESIGN, section 1): every arm lives
//! through the same minutes, and what counts is its ratio to `static` in the same phase of the same repetition.

pub mod arm;
pub mod block;
pub mod collect;
pub mod compare;
pub mod experiment;
mod journal;
pub mod report;
pub(crate) mod restrict;
pub mod results;
pub mod run;
pub mod stats;
pub mod summary;
pub mod warm;
mod watch;
pub mod work;
