//! Names that somebody may have meant: a wrong name in a hurry should cost one look, not a search through `status`.

use crate::config::edit_distance;
use ballast_planner::VmName;

/// Names offered at most: a line on a terminal.
const OFFERED: usize = 3;

/// What to say of a VM that is not there.
pub fn unknown_vm<'a>(name: &VmName, known: impl IntoIterator<Item = &'a VmName>) -> String {
    let mut known: Vec<&str> = known.into_iter().map(|n| n.0.as_str()).collect();
    known.sort_unstable();
    known.dedup();
    if known.is_empty() {
        return format!("no VM named `{name}` is known, nor any other: name one in a [[vm]] table, or add [libvirt]");
    }
    let near = near(&name.0, &known);
    if near.is_empty() {
        return format!("no VM named `{name}` is known; `ballast-host status` lists them");
    }
    let near: Vec<String> = near.iter().map(|n| format!("`{n}`")).collect();
    format!("no VM named `{name}` is known; did you mean {}?", near.join(" or "))
}

/// The nearest first, of the same length before others: few edits away, or one name within the other.
fn near<'a>(name: &str, known: &[&'a str]) -> Vec<&'a str> {
    let lower = name.to_lowercase();
    let mut found: Vec<(usize, usize, &str)> = known
        .iter()
        .filter_map(|k| {
            let other = k.to_lowercase();
            let edits = edit_distance(&lower, &other);
            let is_part = lower.len() > 1 && (other.contains(&lower) || lower.contains(&other));
            (edits <= 1 + name.len() / 3 || is_part).then_some((edits, k.len().abs_diff(name.len()), *k))
        })
        .collect();
    found.sort_unstable();
    found.into_iter().map(|(_, _, k)| k).take(OFFERED).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(name: &str, known: &[&str]) -> String {
        let known: Vec<VmName> = known.iter().map(|k| VmName::from(*k)).collect();
        unknown_vm(&VmName::from(name), &known)
    }

    #[test]
    fn what_was_probably_meant_is_offered_nearest_first() {
        let fleet = ["database-1", "database-2", "web", "web-staging", "mail"];
        for (typed, offered) in [
            ("wbe", "did you mean `web`?"),
            ("WEB", "did you mean `web` or `web-staging`?"),
            ("datbase-1", "did you mean `database-1` or `database-2`?"),
            ("staging", "did you mean `web-staging`?"),
            ("printer", "known; `ballast-host status` lists them"),
        ] {
            let said = said(typed, &fleet);
            assert!(said.starts_with(&format!("no VM named `{typed}` is known")) && said.contains(offered), "{said}");
        }
    }

    #[test]
    fn with_no_vm_at_all_the_mend_is_another() {
        assert!(said("web", &[]).contains("nor any other: name one in a [[vm]] table"));
    }
}
