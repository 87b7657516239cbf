//! The control API and its commands against a real daemon over VMs made of threads. Every answer that the socket gives
//! is checked against `openapi.json`.

// The helpers of a test fail as the test does.
#![allow(clippy::unwrap_used)]

mod access;
mod clients;
#[path = "../common/mod.rs"]
mod common;
mod holds;
mod host;
mod law;
mod reload;
mod room;
