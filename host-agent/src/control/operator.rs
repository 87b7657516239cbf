//! Who asks: the kernel says so (SO_PEERCRED, unix(7)), the client cannot.
//!
//! Operators who all become root through sudo would be one person to each other. So root, and only root, may say on
//! whose behalf it asks; the commands pass `SUDO_USER` on. Root could do everything anyway: nothing is gained by a lie.

use std::fmt;
use tokio::net::unix::UCred;

/// The header in which root says on whose behalf it asks.
pub(super) const ON_BEHALF: &str = "ballast-operator";
/// Names end in logs and in a line of a terminal.
const LONGEST_NAME: usize = 64;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// The peer's user.
    pub uid: u32,
    /// The peer's group.
    pub gid: u32,
    /// The peer's process; `None`: the kernel does not say.
    pub pid: Option<i32>,
    /// For people, and what tells two operators apart.
    pub name: String,
}

impl Operator {
    /// The peer of a connection.
    pub(super) fn of(credentials: &UCred) -> Self {
        let uid = credentials.uid();
        let accounts = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let name = user_name(&accounts, uid).unwrap_or_else(|| format!("uid {uid}"));
        Self { uid, gid: credentials.gid(), pid: credentials.pid(), name }
    }

    /// As named in the request, where that may be believed.
    pub(super) fn on_behalf_of(mut self, named: Option<&str>) -> Self {
        let named = named.map(str::trim).filter(|n| !n.is_empty() && n.len() <= LONGEST_NAME);
        if let Some(named) = named.filter(|_| self.uid == 0) {
            self.name = named.chars().filter(|c| !c.is_control()).collect();
        }
        self
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name)
    }
}

/// The user's name in the text of `/etc/passwd` (passwd(5)). Accounts that are elsewhere (LDAP) are known by number.
fn user_name(accounts: &str, uid: u32) -> Option<String> {
    accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, id) = (fields.next()?, fields.nth(1)?);
        (id.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32) -> Operator {
        Operator { uid, gid: 0, pid: Some(1), name: "somebody".to_owned() }
    }

    #[test]
    fn users_are_found_by_number() {
        let accounts = "root:x:0:0:root:/root:/bin/bash\nbroken\nalice:x:1000:1000::/home/alice:/bin/sh\n";
        assert_eq!(user_name(accounts, 1000).as_deref(), Some("alice"));
        assert_eq!(user_name(accounts, 0).as_deref(), Some("root"));
        assert_eq!(user_name(accounts, 7), None);
    }

    #[test]
    fn only_root_speaks_for_others() {
        assert_eq!(peer(0).on_behalf_of(Some("alice")).name, "alice");
        assert_eq!(peer(1000).on_behalf_of(Some("alice")).name, "somebody");
        assert_eq!(peer(0).on_behalf_of(Some(" ")).name, "somebody");
        assert_eq!(peer(0).on_behalf_of(Some(&"x".repeat(65))).name, "somebody");
        assert_eq!(peer(0).on_behalf_of(Some("a\u{7}b")).name, "ab");
        assert_eq!(peer(0).on_behalf_of(None).name, "somebody");
    }
}
