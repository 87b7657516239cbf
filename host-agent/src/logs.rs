//! Where the daemon's log goes: to systemd's journal with every field when that is where stderr goes, to stderr otherwise.
//!
//! In the journal a line's fields can be asked for (`journalctl -u ballast-host BALLAST_VM=web`), and a line can be read:
//! `journalctl` shows the message alone, so the message there has the fields in it too.

use rustix::fs::fstat;
use std::fmt::{self, Write};
use std::io::IsTerminal;
use tracing::field::{Field, Value, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// Fields of an event at most, as tracing itself once had it. More than three times what any event here has.
const FIELDS: usize = 32;

/// Starts logging, at the levels that `BALLAST_LOG` asks for.
pub fn start() {
    let filter = EnvFilter::try_from_env("BALLAST_LOG").unwrap_or_else(|_| "info".into());
    let colours = std::io::stderr().is_terminal();
    let lines = || tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false).with_ansi(colours);
    let registry = tracing_subscriber::registry().with(filter);
    if !goes_to_journal(std::env::var("JOURNAL_STREAM").ok().as_deref()) {
        return registry.with(lines()).init();
    }
    match tracing_journald::layer() {
        Ok(layer) => {
            let layer = layer
                .with_field_prefix(Some("BALLAST".to_owned()))
                .with_syslog_identifier("ballast-host".to_owned())
                .with_priority_mappings(tracing_journald::PriorityMappings {
                    // The journal's own words: "informational" is what a running service says.
                    info: tracing_journald::Priority::Informational,
                    debug: tracing_journald::Priority::Debug,
                    ..tracing_journald::PriorityMappings::new()
                });
            registry.with(Readable(layer)).init();
        }
        Err(error) => {
            registry.with(lines()).init();
            tracing::warn!(%error, "systemd's journal does not listen; it gets lines without fields");
        }
    }
}

/// Whether stderr is the journal, as systemd.exec(5) asks to find out: the variable is inherited by processes whose
/// stderr goes somewhere else.
fn goes_to_journal(stream: Option<&str>) -> bool {
    let Some((device, inode)) = stream.and_then(|s| s.split_once(':')) else { return false };
    fstat(std::io::stderr()).is_ok_and(|stat| device.parse() == Ok(stat.st_dev) && inode.parse() == Ok(stat.st_ino))
}

/// Adds the fields of an event to its message.
#[derive(Debug)]
struct Readable<L>(L);

impl<S, L> Layer<S> for Readable<L>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    L: Layer<S>,
{
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut texts = Texts::default();
        event.record(&mut texts);
        let Some((first, _)) = texts.fields.first() else { return };
        // Places that are not needed stay empty.
        let values: [(&Field, Option<&dyn Value>); FIELDS] =
            std::array::from_fn(|place| match texts.fields.get(place) {
                Some((field, text)) if field.name() == "message" => (field, Some(&texts.message as &dyn Value)),
                Some((field, text)) => (field, Some(text as &dyn Value)),
                None => (first, None),
            });
        let values = event.metadata().fields().value_set(&values);
        self.0.on_event(&Event::new(event.metadata(), &values), context);
    }
}

/// An event's fields as text.
#[derive(Debug, Default)]
struct Texts {
    message: String,
    fields: Vec<(Field, String)>,
}

impl Visit for Texts {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}"));
    }
}

impl Texts {
    fn add(&mut self, field: &Field, text: String) {
        // Into a string nothing fails.
        let _ = match field.name() {
            "message" => {
                self.message.insert_str(0, &text);
                Ok(())
            }
            name => write!(self.message, " {name}={text}"),
        };
        self.fields.push((field.clone(), text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// Keeps what reaches the layer below.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber> Layer<S> for Kept {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let mut texts = Texts::default();
            event.record(&mut texts);
            let fields = texts.fields.iter().map(|(field, text)| format!("{}={text}", field.name()));
            self.0.lock().unwrap().extend(fields);
        }
    }

    #[test]
    fn a_message_has_its_fields_in_it_and_beside_it() {
        let kept = Kept::default();
        let subscriber = tracing_subscriber::registry().with(Readable(kept.clone()));
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(vm = %"web", moved_bytes = -5, followed = true, "settled");
        });
        let fields = kept.0.lock().unwrap().clone();
        assert!(fields.contains(&"message=settled vm=web moved_bytes=-5 followed=true".to_owned()), "{fields:?}");
        assert!(fields.contains(&"vm=web".to_owned()) && fields.contains(&"moved_bytes=-5".to_owned()), "{fields:?}");
    }

    #[test]
    fn the_journal_is_where_stderr_goes_and_not_what_a_variable_says() {
        let stat = fstat(std::io::stderr()).unwrap();
        assert!(goes_to_journal(Some(&format!("{}:{}", stat.st_dev, stat.st_ino))));
        for other in [None, Some(""), Some("1"), Some("8:99999999999"), Some("x:y")] {
            assert!(!goes_to_journal(other), "{other:?}");
        }
    }
}
