//! The API's description for programs: `openapi.json` beside `Cargo.toml`, written by hand.
//!
//! By hand, because the types that travel belong to the planner too, which has no business with a schema generator;
//! kept true by tests, because a description that is not compared with the code is wrong within a month.

/// OpenAPI 3.1.
pub const DOCUMENT: &str = include_str!("../../openapi.json");

#[cfg(test)]
mod tests;
