//! The lab: paired experiments on real guests.

pub mod work;
