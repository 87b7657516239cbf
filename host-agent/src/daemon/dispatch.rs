//! What becomes of the planner's actions.

use super::{Daemon, REMEMBERED};
use crate::actuator::Command;
use crate::control::Decision;
use crate::journal::Record;
use crate::prober;
use ballast_planner::{Action, HostNotice, Notice, VmName, shortfall_text};
use ballast_protocol::{Answer, HostMessage, Micros, Reclaim, Verdict};

impl Daemon {
    /// Carries out one action. It never waits: a VM whose session or hypervisor is stuck holds up nobody.
    pub(super) fn dispatch(&mut self, at: Micros, action: Action) {
        match &action {
            Action::Order { vm, order, target, from, pace, reason } => {
                // The order first, the paper work afterwards.
                self.command(vm, Command::Order { order: *order, target: *target, pace: *pace });
                self.probe(prober::Command::Disturbed(vm.clone()));
                let (target, verb) = (target.bytes(), if target.bytes() < *from { "take" } else { "give" });
                tracing::info!(%vm, order, %target, %from, %reason, "{verb}");
                self.remember(vm, at, format!("{verb}: {from} -> {target}: {reason}"));
            }
            Action::Answer { vm, demand, verdict } => {
                self.say(vm, HostMessage::Answer(Answer { id: *demand, verdict: *verdict }));
                self.probe(prober::Command::Disturbed(vm.clone()));
                let text = verdict_text(*verdict);
                tracing::debug!(%vm, demand, verdict = text, "demand");
                self.remember(vm, at, format!("demand {demand}: {text}"));
            }
            Action::Reclaim { vm, id, size, said } => {
                self.say(vm, HostMessage::Reclaim(Reclaim { id: *id, size: *size }));
                let said = said.map_or_else(String::new, |said| format!(": {said}"));
                self.remember(vm, at, format!("reclaim: the guest drops up to {size} of cold page cache{said}"));
            }
            Action::Probe { vm, why } => {
                self.probe(prober::Command::Asked(vm.clone(), *why));
                self.remember(vm, at, format!("probe: {why}"));
            }
            Action::Would { vm, target, from, reason } => {
                let (target, verb) = (target.bytes(), if target.bytes() < *from { "take" } else { "give" });
                tracing::info!(%vm, %target, %from, %reason, "dry run: would {verb}");
                self.remember(vm, at, format!("dry run, would {verb}: {from} -> {target}: {reason}"));
            }
            Action::Host(notice) => match notice {
                HostNotice::Short(_) | HostNotice::Lapsed(_) => tracing::warn!("{notice}"),
                HostNotice::Enough | HostNotice::Ready(_) => tracing::info!("{notice}"),
            },
            Action::Watch { vm, every } => self.command(vm, Command::Watch(*every)),
            Action::Notice { vm, notice } => {
                match notice {
                    Notice::TrustedAgain | Notice::ServiceWell => tracing::info!(%vm, "{notice}"),
                    _ => tracing::warn!(%vm, "{notice}"),
                }
                self.remember(vm, at, notice.to_string());
            }
        }
        self.decided(at, &action);
        self.record(&Record::Action { at, action });
    }

    pub(super) fn command(&self, vm: &VmName, command: Command) {
        if let Some(managed) = self.vms.get(vm) {
            // An actuator that has ended belongs to a VM that is being forgotten.
            let _ = managed.commands.send(command);
        }
    }

    /// Tells a guest. One that does not read loses its session: it would believe in answers that never came.
    pub(super) fn say(&mut self, vm: &VmName, message: HostMessage) {
        let Some(session) = self.sessions.get(vm) else { return };
        if session.outgoing.try_send(message).is_err() {
            let number = session.number;
            tracing::warn!(%vm, "the agent does not read what it is told: its session ends");
            let why = "the guest does not read".to_owned();
            let events = self.events.clone();
            let vm = vm.clone();
            // Not from within the planner's own actions: the end comes as an event like any other.
            tokio::spawn(async move { events.send(super::Event::SessionEnded { vm, number, why }).await });
        }
    }

    pub(super) fn remember(&mut self, vm: &VmName, at: Micros, text: String) {
        let decisions = self.remembered.entry(vm.clone()).or_default();
        if decisions.len() == REMEMBERED {
            decisions.pop_front();
        }
        decisions.push_back(Decision { at, text });
    }
}

fn verdict_text(verdict: Verdict) -> String {
    match verdict {
        Verdict::Granted { size, .. } => format!("granted {size}"),
        Verdict::Partly { size, why, .. } => format!("granted {size} only: {}", shortfall_text(why)),
        Verdict::Refused(why) => format!("refused: {}", shortfall_text(why)),
    }
}
