//! What was asked of the host, and what became of it.
//!
//! ```text
//!   raise --> Asked --Answer--> Granted{until} --relief measured | hold over--> gone
//!                \------------> Refused ------------------------------------> gone (a lease stays until it ends)
//! ```
//!
//! Slack-like demands are over by themselves; leases (`Reserve`) and hints (`Committed`) end with a Withdraw.

use ballast_protocol::{Answer, Bytes, Demand, Micros, Shortfall, Source, Verdict};

/// Demands that can stand at once: every lease ([`crate::serve::MAX_LEASES`]) and as many of our own.
const ROOM: usize = 128;
/// Without an answer a demand of our own is forgotten after this long; the host promises an answer within `within`,
/// and what it would grant now was asked for a situation long gone.
const UNANSWERED: Micros = Micros::secs(2);

/// What became of a demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Sent (or waiting for a session to be sent in).
    Asked,
    /// All or part of it is ordered.
    Granted {
        /// How much.
        size: Bytes,
        /// When the answer came.
        answered: Micros,
        /// Until when at least.
        until: Micros,
    },
    /// Nothing is ordered.
    Refused(Shortfall),
}

/// One demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As it was sent.
    pub demand: Demand,
    /// What became of it.
    pub state: State,
}

/// Demands raised and verdicts received since the agent started, per source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Tally {
    /// Raised.
    pub raised: u64,
    /// Granted in full.
    pub granted: u64,
    /// Granted in part.
    pub partly: u64,
    /// Refused.
    pub refused: u64,
    /// Withdrawn.
    pub withdrawn: u64,
}

/// All demands that are not over.
#[derive(Debug)]
pub struct Book {
    next: u64,
    entries: Vec<Entry>,
    tallies: [Tally; SOURCES.len()],
}

/// In the order of [`Source`].
pub const SOURCES: [(Source, &str); 6] = [
    (Source::Slack, "slack"),
    (Source::Committed, "committed"),
    (Source::Cgroup, "cgroup"),
    (Source::Psi, "psi"),
    (Source::Stall, "stall"),
    (Source::Reserve, "reserve"),
];

impl Default for Book {
    fn default() -> Self {
        Self { next: 1, entries: Vec::with_capacity(ROOM), tallies: [Tally::default(); SOURCES.len()] }
    }
}

impl Book {
    /// Gives `demand` its id and writes it down; `None` when the book is full.
    pub fn raise(&mut self, mut demand: Demand) -> Option<Demand> {
        if self.entries.len() == ROOM {
            return None;
        }
        demand.id = self.next;
        self.next += 1;
        self.entries.push(Entry { demand, state: State::Asked });
        self.tally(demand.source).raised += 1;
        Some(demand)
    }

    /// An answer came; returns the entry as it is now, `None` when no such demand stands.
    pub fn answer(&mut self, at: Micros, answer: Answer) -> Option<Entry> {
        let entry = self.entries.iter_mut().find(|e| e.demand.id == answer.id)?;
        let source = entry.demand.source;
        entry.state = match answer.verdict {
            Verdict::Granted { size, hold } | Verdict::Partly { size, hold, .. } => {
                State::Granted { size, answered: at, until: at + hold }
            }
            Verdict::Refused(why) => State::Refused(why),
        };
        let entry = *entry;
        let tally = self.tally(source);
        match answer.verdict {
            Verdict::Granted { .. } => tally.granted += 1,
            Verdict::Partly { .. } => tally.partly += 1,
            Verdict::Refused(_) => tally.refused += 1,
        }
        Some(entry)
    }

    /// The demand is over; whether it stood.
    pub fn withdraw(&mut self, id: u64) -> bool {
        let Some(at) = self.entries.iter().position(|e| e.demand.id == id) else { return false };
        let source = self.entries.remove(at).demand.source;
        self.tally(source).withdrawn += 1;
        true
    }

    /// The demand is over by itself.
    pub fn close(&mut self, id: u64) {
        self.entries.retain(|e| e.demand.id != id);
    }

    /// Removes what is over by now.
    pub fn expire(&mut self, now: Micros) {
        self.entries.retain(|e| match (e.demand.source, e.state) {
            (Source::Reserve | Source::Committed, _) => true,
            (_, State::Asked) => now - e.demand.sent < UNANSWERED,
            (_, State::Granted { until, .. }) => now < until,
            (_, State::Refused(_)) => false,
        });
    }

    /// The session ended: only leases outlive it, to be asked for again in the next.
    pub fn end_session(&mut self) {
        self.entries.retain(|e| e.demand.source == Source::Reserve);
        for entry in &mut self.entries {
            entry.state = State::Asked;
        }
    }

    /// The demand of `source` that stands, if one does.
    #[must_use]
    pub fn standing(&self, source: Source) -> Option<u64> {
        self.entries.iter().find(|e| e.demand.source == source).map(|e| e.demand.id)
    }

    /// All that stand.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// All that stand, to be stamped anew.
    pub fn entries_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.entries.iter_mut()
    }

    /// The sum of what was asked and not answered.
    #[must_use]
    pub fn pending(&self) -> Bytes {
        self.entries.iter().filter(|e| e.state == State::Asked).map(|e| e.demand.size).sum()
    }

    /// Whether a demand of our own judging (no lease) waits for its answer.
    #[must_use]
    pub fn is_asking(&self) -> bool {
        self.entries.iter().any(|e| e.state == State::Asked && e.demand.source != Source::Reserve)
    }

    /// What was raised since the start, per source.
    #[must_use]
    pub fn tallies(&self) -> [(&'static str, Tally); SOURCES.len()] {
        std::array::from_fn(|i| (SOURCES[i].1, self.tallies[i]))
    }

    fn tally(&mut self, source: Source) -> &mut Tally {
        let at = SOURCES.iter().position(|(s, _)| *s == source).expect("SOURCES names every source");
        &mut self.tallies[at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(source: Source) -> Demand {
        Demand {
            id: 0,
            source,
            size: Bytes::mib(64),
            sign: Micros(1),
            sent: Micros(2),
            within: Micros::millis(50),
            free: Bytes::mib(40),
            ballooned: None,
        }
    }

    fn granted(id: u64) -> Answer {
        Answer { id, verdict: Verdict::Granted { size: Bytes::mib(64), hold: Micros::secs(5) } }
    }

    #[test]
    fn ids_grow_and_pending_is_what_is_not_answered() {
        let mut book = Book::default();
        let a = book.raise(demand(Source::Slack)).unwrap().id;
        let b = book.raise(demand(Source::Reserve)).unwrap().id;
        assert!(b > a);
        assert_eq!(book.pending(), Bytes::mib(128));
        book.answer(Micros(10), granted(a)).unwrap();
        assert_eq!(book.pending(), Bytes::mib(64), "the lease waits");
        book.expire(Micros(10) + Micros::secs(5));
        assert_eq!(book.entries().len(), 1, "the hold is over, the lease stays");
        assert!(book.withdraw(b) && !book.withdraw(b));
        assert_eq!(book.pending(), Bytes::ZERO);
        assert_eq!(book.tallies()[0].1.granted, 1);
        assert_eq!(book.tallies()[5].1.withdrawn, 1);
    }

    #[test]
    fn only_leases_outlive_a_session_and_are_asked_for_again() {
        let mut book = Book::default();
        book.raise(demand(Source::Slack));
        let lease = book.raise(demand(Source::Reserve)).unwrap().id;
        book.answer(Micros(10), granted(lease));
        book.end_session();
        assert_eq!(book.entries().len(), 1);
        assert_eq!(book.entries()[0].state, State::Asked);
        assert!(book.answer(Micros(11), granted(lease)).is_some());
    }

    #[test]
    fn an_answer_to_nothing_is_nothing_and_the_book_is_bounded() {
        let mut book = Book::default();
        assert_eq!(book.answer(Micros(1), granted(77)), None);
        while book.raise(demand(Source::Reserve)).is_some() {}
        assert_eq!(book.entries().len(), ROOM);
    }
}
