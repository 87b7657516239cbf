//! Leases of `ballast-guest need`: memory that somebody said it will use.
//!
//! A lease is granted when the memory is *really* there: free memory above the low watermarks covers it and what other
//! leases have been promised and not touched. Until then the host is asked for what is missing.

use crate::log;
use crate::serve::MAX_LEASES;
use ballast_protocol::{Bytes, Micros, Shortfall};
use tokio::sync::oneshot;

/// How long a lease may wait for its memory: deflating 64 GiB takes 30 s at the speed measured on KVM.
const WAIT: Micros = Micros::secs(30);
/// Asked for beyond what is missing: the guest goes on living while the memory comes.
const MARGIN: Bytes = Bytes::mib(16);
/// When it is still not there, somebody else has used it: the host is asked again.
const ASK_AGAIN: Micros = Micros::secs(1);
/// After the host's refusal, how long memory may still come from elsewhere.
const REFUSED_WAIT: Micros = Micros::millis(500);

/// One lease.
#[derive(Debug)]
pub struct Lease {
    client: u64,
    /// How much.
    pub size: Bytes,
    since: Micros,
    /// The demand at the host, once there is one, and when it was raised.
    demand: Option<(u64, Micros)>,
    refused: Option<(Micros, Shortfall)>,
    /// Taken when the answer is given.
    reply: Option<oneshot::Sender<String>>,
    /// Anonymous and shared memory of the guest when it was granted.
    resident: Bytes,
}

/// All leases.
#[derive(Debug, Default)]
pub struct Leases {
    list: Vec<Lease>,
}

impl Leases {
    /// A client wants `size`; whether it is considered at all. A refused client has its answer.
    pub fn open(
        &mut self,
        now: Micros,
        client: u64,
        size: Bytes,
        total: Bytes,
        reply: oneshot::Sender<String>,
    ) -> bool {
        let sum: Bytes = self.list.iter().map(|l| l.size).sum();
        let problem = if self.list.len() >= MAX_LEASES {
            Some(format!("refused {MAX_LEASES} leases are open already"))
        } else if sum + size > total {
            Some(format!("refused {size} and the {sum} leased already are more than this VM's {total}"))
        } else {
            None
        };
        if let Some(text) = problem {
            // A client that is gone is told nothing.
            let _ = reply.send(text);
            return false;
        }
        let lease =
            Lease { client, size, since: now, demand: None, refused: None, reply: Some(reply), resident: Bytes::ZERO };
        self.list.push(lease);
        true
    }

    /// The client closed; the demand to withdraw, if there is one.
    pub fn close(&mut self, client: u64) -> Option<u64> {
        let at = self.list.iter().position(|l| l.client == client)?;
        self.list.remove(at).demand.map(|(id, _)| id)
    }

    /// The host refused a lease's demand, in whole or in part.
    pub fn refused(&mut self, now: Micros, demand: u64, why: Shortfall) {
        for lease in self.list.iter_mut().filter(|l| l.demand.is_some_and(|(id, _)| id == demand)) {
            lease.refused.get_or_insert((now, why));
        }
    }

    /// The session ended: what the host refused, the next may grant.
    pub fn forget_host(&mut self) {
        for lease in &mut self.list {
            lease.refused = None;
        }
    }

    /// Whether somebody waits.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.list.iter().any(|l| l.reply.is_some())
    }

    /// How many leases there are, and their sum.
    #[must_use]
    pub fn tally(&self) -> (usize, Bytes) {
        (self.list.len(), self.list.iter().map(|l| l.size).sum())
    }

    /// Promised and not touched yet, judged by how `resident` grew since; no part of it can be given away.
    #[must_use]
    pub fn untouched(&self, resident: Bytes) -> Bytes {
        let granted = self.list.iter().filter(|l| l.reply.is_none());
        granted.map(|l| l.size - (resident - l.resident)).sum()
    }

    /// Grants what is there and refuses what will not come. Calls `demand` with what is missing for a lease that has
    /// no demand yet, or one that brought too little, which it replaces; it gives back the new demand's id, or `None`
    /// while there is no session.
    pub fn settle(
        &mut self,
        now: Micros,
        slack: Bytes,
        resident: Bytes,
        mut demand: impl FnMut(Bytes, Option<u64>) -> Option<u64>,
    ) {
        let mut promised = self.untouched(resident);
        for lease in self.list.iter_mut().filter(|l| l.reply.is_some()) {
            let missing = (promised + lease.size) - slack;
            promised += lease.size;
            let answer = if missing == Bytes::ZERO {
                lease.resident = resident;
                format!("granted {}", lease.size.0)
            } else if let Some((at, why)) = lease.refused
                && now - at >= REFUSED_WAIT
            {
                format!("refused {missing} of {} are missing and the host said {why:?}", lease.size)
            } else if now - lease.since >= WAIT {
                format!("refused {missing} of {} did not come within {WAIT}", lease.size)
            } else {
                if lease.demand.is_none_or(|(_, at)| now - at >= ASK_AGAIN) {
                    let old = lease.demand.map(|(id, _)| id);
                    lease.demand = demand(missing + MARGIN, old).map(|id| (id, now));
                }
                continue;
            };
            log!(Debug, "lease of {}: {answer}", lease.size);
            if let Some(reply) = lease.reply.take() {
                // A client that went is told nothing; its Gone is on its way.
                let _ = reply.send(answer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOTAL: Bytes = Bytes::mib(512);

    fn mib(n: u64) -> Bytes {
        Bytes::mib(n)
    }

    fn open(leases: &mut Leases, client: u64, size: u64) -> oneshot::Receiver<String> {
        let (reply, answer) = oneshot::channel();
        leases.open(Micros::secs(1), client, mib(size), TOTAL, reply);
        answer
    }

    #[test]
    fn a_lease_waits_until_the_memory_is_really_there() {
        let mut leases = Leases::default();
        let mut answer = open(&mut leases, 1, 200);
        let mut asked = Vec::new();
        let mut settle = |l: &mut Leases, slack| {
            l.settle(Micros::secs(2), mib(slack), mib(50), |m, _| {
                asked.push(m);
                Some(9)
            })
        };
        settle(&mut leases, 60);
        settle(&mut leases, 199);
        assert!(answer.try_recv().is_err());
        settle(&mut leases, 200);
        assert_eq!(answer.try_recv().unwrap(), format!("granted {}", mib(200).0));
        assert_eq!(asked, [mib(140) + MARGIN], "the host is asked once, for what is missing");
        assert_eq!(leases.close(1), Some(9));
    }

    #[test]
    fn memory_promised_to_one_is_not_promised_to_another_until_it_is_touched() {
        let mut leases = Leases::default();
        let _first = open(&mut leases, 1, 100);
        leases.settle(Micros::secs(2), mib(120), mib(50), |_, _| Some(1));
        let mut second = open(&mut leases, 2, 100);
        leases.settle(Micros::secs(2), mib(120), mib(50), |_, _| Some(2));
        assert!(second.try_recv().is_err(), "the first has not touched its memory");
        assert_eq!(leases.untouched(mib(150)), Bytes::ZERO);
        leases.settle(Micros::secs(2), mib(120), mib(150), |_, _| Some(2));
        assert!(second.try_recv().unwrap().starts_with("granted"));
    }

    #[test]
    fn refusals_say_why_and_bounds_hold() {
        let mut leases = Leases::default();
        let mut answer = open(&mut leases, 1, 200);
        leases.settle(Micros::secs(2), mib(10), mib(50), |_, _| Some(4));
        leases.refused(Micros::secs(2), 4, Shortfall::HostShort);
        leases.settle(Micros::secs(3), mib(10), mib(50), |_, _| Some(4));
        let text = answer.try_recv().unwrap();
        assert!(text.starts_with("refused 190 MiB of 200 MiB") && text.contains("HostShort"), "{text}");
        assert!(open(&mut leases, 2, 400).try_recv().unwrap().contains("more than this VM's 512 MiB"));
        for client in 3..100 {
            drop(open(&mut leases, client, 1));
        }
        assert!(open(&mut leases, 200, 1).try_recv().unwrap().contains("64 leases"));
    }
}
