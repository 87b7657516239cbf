//! Where the daemon shows itself: metrics and the status page.
//!
//! On the loopback address unless told otherwise: names and figures of all VMs are on it, and it has no passwords.

use super::{ConfigError, Source};
use serde::Deserialize;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use toml::Spanned;

/// Of no registered service, and below the ephemeral ports.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9741);

/// Where the daemon shows itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// Address and port; port 0: any.
    pub listen: SocketAddr,
    /// Host names, lower case, beside `localhost` and addresses, under which browsers and Prometheus may ask.
    pub names: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Raw {
    enabled: Option<bool>,
    listen: Option<Spanned<String>>,
    allow_remote: bool,
    names: Vec<Spanned<String>>,
}

pub(super) fn check(source: &Source<'_>, raw: &Raw) -> Result<Option<Metrics>, ConfigError> {
    let mut listen = DEFAULT_LISTEN;
    if let Some(given) = &raw.listen {
        let error = |problem: String| source.error(given.span().start, problem);
        listen = given.get_ref().parse().map_err(|_| {
            error(format!(
                "listen `{}` is not an address with a port; write for example \"{DEFAULT_LISTEN}\"",
                given.get_ref()
            ))
        })?;
        if !listen.ip().is_loopback() && !raw.allow_remote {
            return Err(error(format!(
                "listen {listen} can be reached from other machines, and whoever reaches it sees names and figures of \
                 all VMs: use 127.0.0.1, or add allow-remote = true"
            )));
        }
    }
    let mut names = Vec::with_capacity(raw.names.len());
    for name in &raw.names {
        let text = name.get_ref();
        if text.is_empty() || !text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_')) {
            let problem =
                format!("`{text}` is not a host name; write it without scheme and port, as \"host1.example\"");
            return Err(source.error(name.span().start, problem));
        }
        names.push(text.to_ascii_lowercase());
    }
    Ok(raw.enabled.unwrap_or(true).then_some(Metrics { listen, names }))
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, ConfigError};
    use std::path::Path;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("b.toml"), &format!("[libvirt]\n[metrics]\n{text}"))
    }

    #[test]
    fn it_is_on_and_for_this_machine_only() {
        let settings = parse("").unwrap().metrics.unwrap();
        assert_eq!((settings.listen.to_string(), settings.names.len()), ("127.0.0.1:9741".to_owned(), 0));
        assert_eq!(parse("enabled = false").unwrap().metrics, None);
        assert!(parse("listen = \"[::1]:80\"").is_ok());
    }

    #[test]
    fn other_machines_are_let_in_only_by_saying_so() {
        for address in ["0.0.0.0:9741", "[::]:9741", "10.0.0.7:9741", "[::ffff:127.0.0.1]:9741"] {
            let error = parse(&format!("listen = \"{address}\"")).unwrap_err().to_string();
            assert!(error.starts_with("b.toml:3:10: listen ") && error.contains("allow-remote = true"), "{error}");
            assert!(parse(&format!("listen = \"{address}\"\nallow-remote = true")).is_ok());
        }
    }

    #[test]
    fn what_cannot_be_listened_on_is_named() {
        for text in ["listen = \"9741\"", "listen = \"localhost:9741\"", "names = [\"http://a\"]", "listn = \"\""] {
            let error = parse(text).unwrap_err().to_string();
            assert!(
                error.starts_with("b.toml:3:") && (error.contains("write") || error.contains("did you mean")),
                "{error}"
            );
        }
    }
}
