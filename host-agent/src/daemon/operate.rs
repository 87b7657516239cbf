//! What operators have the daemon do while it runs: hold, release, exempt, reclaim, reserve, another law, a dry run.
//!
//! ```text
//!   Change -> checked against what is known of the VM and of what others said -> Input -> Planner
//!                    '-> refused, with who stands against it     '-> said -> operators.json -> Done
//! ```
//! Whoever is told that something was done may rely on it, also across a restart of the daemon: the answer waits for
//! the file, the daemon does not. A law chosen by hand is the exception; after a restart the configuration's rules.

mod keep;
mod said;

use super::Daemon;
use crate::control::{
    Change, Done, HoldRequest, LONGEST_REASON, Operator, ReclaimRequest, Reclaimed, Refused, ReserveRequest, unknown_vm,
};
use crate::show::seconds;
use ballast_planner::{Hold, Input, LawName, Reservation, Vm, VmName};
use ballast_protocol::{Bytes, Micros};
pub(super) use keep::Operated;
use said::Said;
use tokio::sync::oneshot;

/// The longest hold or reservation. Whatever is to last longer belongs into the configuration, where the next operator
/// finds it; and a year is far from the end of any clock.
const LONGEST: Micros = Micros::secs(366 * 86_400);
/// The longest name, as in the configuration.
const LONGEST_NAME: usize = 128;

type Answer = Result<Done, Refused>;

fn done(done: String) -> Done {
    Done { done, notes: Vec::new() }
}

/// "for 10m", or until somebody ends it.
fn lasts(until: Option<Micros>, now: Micros) -> String {
    until.map_or_else(|| "until it is released".to_owned(), |until| format!("for {}", seconds(until - now)))
}

fn checked_time(what: &str, span: Micros) -> Result<Micros, Refused> {
    if span < Micros::secs(1) || span > LONGEST {
        let text = format!("{what} {span} is not between 1 s and a year; what lasts longer belongs into host.toml");
        return Err(Refused::invalid(text));
    }
    Ok(span)
}

/// Names stand in logs, one line each.
fn checked_name(name: &VmName) -> Result<(), Refused> {
    if name.0.is_empty() || name.0.len() > LONGEST_NAME || name.0.chars().any(char::is_control) {
        return Err(Refused::invalid(format!("a name has 1 to {LONGEST_NAME} printable characters")));
    }
    Ok(())
}

fn checked_size(size: Bytes) -> Result<Bytes, Refused> {
    if size < Bytes::mib(1) {
        return Err(Refused::invalid(format!("a size of {size} is too little: balloons move by MiB")));
    }
    Ok(size)
}

impl Daemon {
    /// Takes up what was said to the daemon before this one.
    pub(super) fn resume_operated(&mut self) {
        let Said { holds, reservations, exempt, dry_run, lost: _ } = &self.operated.said;
        if self.operated.said != Said::default() {
            tracing::info!(
                holds = holds.len(),
                reservations = reservations.len(),
                exempt = exempt.len(),
                dry_run = dry_run.unwrap_or_default(),
                "what operators said before the restart still holds"
            );
        }
        for reservation in reservations.values().cloned().collect::<Vec<_>>() {
            self.input(Input::Reserve(reservation));
        }
    }

    /// A VM was found: whatever was said of it counts again, and what was reserved for it is its own now.
    pub(super) fn resume_operated_for(&mut self, vm: &VmName) {
        let now = self.clock.now();
        self.operated.said.expire(now);
        if let Some(hold) = self.operated.said.holds.get(vm).cloned() {
            self.input(Input::Hold { vm: vm.clone(), hold: Some(hold) });
        }
        if self.operated.said.reservations.remove(vm).is_some() {
            self.operated.keep(now);
        }
    }

    /// Whether nothing is ordered: by hand, else by configuration.
    pub(super) fn is_dry_run(&self) -> bool {
        self.operated.said.dry_run.unwrap_or(self.config.daemon.dry_run)
    }

    /// Tells the planner whether it acts.
    pub(super) fn tell_mode(&mut self) {
        let dry_run = self.is_dry_run();
        self.input(Input::Mode { dry_run });
    }

    /// Carries out a change, or says why not.
    pub(super) fn change(&mut self, who: &Operator, change: Change, reply: oneshot::Sender<Answer>) {
        let now = self.clock.now();
        self.operated.said.expire(now);
        let named = change.vm().map_or(Ok(()), checked_name);
        let answer = named.and_then(|()| match change {
            Change::Hold(vm, request) => self.hold(now, who, &vm, request),
            Change::Release { vm, force } => self.release(now, who, &vm, force),
            Change::Exempt { vm, on: true } => self.exempt(now, who, &vm),
            Change::Exempt { vm, on: false } => self.unexempt(now, who, &vm),
            Change::Reserve(name, request) => self.reserve(now, name, &request),
            Change::Unreserve(name) => self.unreserve(&name),
            Change::Law(request) => Ok(self.choose_law(request.law)),
            Change::DryRun(request) => Ok(self.set_dry_run(request.on)),
        });
        match answer {
            Ok(done) => {
                tracing::info!(user = %who, uid = who.uid, "{}", done.done);
                self.operated.keep_and_answer(now, done, reply);
            }
            Err(refused) => {
                tracing::info!(user = %who, uid = who.uid, "refused: {}", refused.problem);
                let _ = reply.send(Err(refused));
            }
        }
    }

    /// Other laws than ours look at VMs in rounds of their own and know nothing of this.
    fn under_our_law(&self, done: &str) -> Result<(), Refused> {
        match self.planner.law() {
            LawName::Ballast => Ok(()),
            law => Err(Refused::conflict(format!(
                "under the law `{law}` nothing is {done}: `ballast-host policy set ballast` first"
            ))),
        }
    }

    /// The VM, or what to say when there is none.
    fn present(&self, vm: &VmName) -> Result<&Vm, Refused> {
        if let Some(known) = self.planner.vm(vm) {
            return Ok(known);
        }
        if self.config.vms.iter().any(|v| v.name == *vm) {
            let text = format!("`{vm}` is named in the configuration, but no hypervisor has it now: start it first");
            return Err(Refused::conflict(text));
        }
        Err(self.unknown(vm))
    }

    fn unknown(&self, vm: &VmName) -> Refused {
        let known = self.planner.vms().map(|(name, _)| name).chain(self.config.vms.iter().map(|v| &v.name));
        Refused::unknown(unknown_vm(vm, known))
    }

    /// Somebody else's hold on the VM.
    fn held_by_another(&self, now: Micros, who: &Operator, vm: &VmName) -> Option<Refused> {
        let hold = self.operated.said.holds.get(vm).filter(|h| h.by != who.name)?;
        let Hold { size, until, by, reason } = hold;
        let lasts = lasts(*until, now);
        Some(Refused::conflict(format!(
            "`{vm}` is held at {size} by {by} {lasts} ({reason}): ask {by}, or overrule with --force"
        )))
    }

    fn hold(&mut self, now: Micros, who: &Operator, vm: &VmName, request: HoldRequest) -> Answer {
        let HoldRequest { size, during, reason, force } = request;
        let reason = reason.trim().to_owned();
        if reason.is_empty() || reason.chars().count() > LONGEST_REASON || reason.chars().any(char::is_control) {
            let text = format!("a reason has 1 to {LONGEST_REASON} printable characters: the next operator reads it");
            return Err(Refused::invalid(text));
        }
        self.under_our_law("held")?;
        let until = during.map(|d| checked_time("a hold of", d)).transpose()?.map(|d| now + d);
        let known = self.present(vm)?;
        if !known.facts.balloon {
            return Err(Refused::conflict(format!("`{vm}` has no balloon device: it has the size that it has")));
        }
        if known.settings.exempt {
            let text = format!("`{vm}` is exempt, hands off: {} first", self.how_to_unexempt(vm));
            return Err(Refused::conflict(text));
        }
        let (min, max) = (known.guaranteed(), known.max());
        if size < min {
            let text =
                format!("{size} is below what `{vm}` is guaranteed, min {min}; it can be held at {min} to {max}");
            return Err(Refused::invalid(text));
        }
        if size > max {
            let text =
                format!("{size} is above the most that `{vm}` may have, max {max}; it can be held at {min} to {max}");
            return Err(Refused::invalid(text));
        }
        if let (false, Some(refused)) = (force, self.held_by_another(now, who, vm)) {
            return Err(refused);
        }
        let hold = Hold { size, until, by: who.name.clone(), reason: reason.clone() };
        let overruled = self.operated.said.holds.insert(vm.clone(), hold.clone()).filter(|h| h.by != who.name);
        self.input(Input::Hold { vm: vm.clone(), hold: Some(hold) });
        let mut done = done(format!("`{vm}` is held at {size} {} by {who}: {reason}", lasts(until, now)));
        self.remember(vm, now, format!("hold: {size} {} by {who}: {reason}", lasts(until, now)));
        if let Some(before) = overruled {
            done.notes
                .push(format!("{} held it at {} ({}): tell {}", before.by, before.size, before.reason, before.by));
        }
        self.note_what_stands_against(vm, size, &mut done);
        Ok(done)
    }

    /// What keeps a hold from being so at once.
    fn note_what_stands_against(&self, vm: &VmName, size: Bytes, done: &mut Done) {
        let Some(known) = self.planner.vm(vm) else { return };
        if self.is_dry_run() {
            done.notes.push("this is a dry run: nothing is ordered".to_owned());
        } else if known.aim != size {
            done.notes.push(format!("it is told to keep {} for now: {}", known.aim, known.holding));
        }
    }

    fn release(&mut self, now: Micros, who: &Operator, vm: &VmName, force: bool) -> Answer {
        if !self.operated.said.holds.contains_key(vm) {
            self.present(vm)?;
            return Err(Refused::conflict(format!("nobody holds `{vm}`")));
        }
        if let (false, Some(refused)) = (force, self.held_by_another(now, who, vm)) {
            return Err(refused);
        }
        self.operated.said.holds.remove(vm);
        self.input(Input::Hold { vm: vm.clone(), hold: None });
        self.remember(vm, now, format!("hold: released by {who}"));
        Ok(done(format!("`{vm}` is released by {who}")))
    }

    fn how_to_unexempt(&self, vm: &VmName) -> String {
        self.exempt_by(vm).map_or_else(|| format!("`ballast-host exempt {vm} --off`"), |by| by.mend)
    }

    fn exempt(&mut self, now: Micros, who: &Operator, vm: &VmName) -> Answer {
        self.present(vm)?;
        if let Some(hold) = self.operated.said.holds.get(vm) {
            let text = format!("`{vm}` is held at {} by {} ({}): release it first", hold.size, hold.by, hold.reason);
            return Err(Refused::conflict(text));
        }
        let by = self.exempt_by(vm);
        if let Some(by) = by.as_ref().filter(|by| !by.is_doubt) {
            return Ok(done(format!("`{vm}` is exempt by {} already", by.whom)));
        }
        self.operated.said.exempt.insert(vm.clone(), who.name.clone());
        self.settle(vm);
        self.remember(vm, now, format!("exempt: hands off, by {who}"));
        let mut done = done(format!("`{vm}` is exempt: it gets all its memory and keeps it"));
        // A doubt ends when its mistake is corrected; what an operator said does not.
        done.notes.extend(by.map(|by| format!("it was so by {}, and stays so when that is corrected", by.whom)));
        Ok(done)
    }

    fn unexempt(&mut self, now: Micros, who: &Operator, vm: &VmName) -> Answer {
        if self.operated.said.exempt.remove(vm).is_some() {
            self.settle(vm);
            self.remember(vm, now, format!("exempt: no longer, by {who}"));
            let mut done = done(format!("`{vm}` is no longer exempt by hand"));
            match self.exempt_by(vm) {
                Some(by) => done.notes.push(format!("it stays exempt by {}: {}", by.whom, by.mend)),
                None => done.done = format!("`{vm}` is no longer exempt"),
            }
            return Ok(done);
        }
        let known = self.present(vm)?;
        Err(Refused::conflict(if known.settings.exempt {
            format!("`{vm}` is exempt by configuration: {}", self.how_to_unexempt(vm))
        } else {
            format!("`{vm}` is not exempt")
        }))
    }

    fn reserve(&mut self, now: Micros, name: VmName, request: &ReserveRequest) -> Answer {
        let size = checked_size(request.size)?;
        self.under_our_law("reserved")?;
        let until = now + checked_time("a reservation of", request.within)?;
        if self.planner.vm(&name).is_some() {
            return Err(Refused::conflict(format!(
                "`{name}` is here already, and room is reserved for VMs that will start or arrive; `hold` gives it a size"
            )));
        }
        let host = self.planner.host_status(now);
        if let Some(host) = host.as_ref().filter(|h| size > h.total - h.reserve) {
            let most = host.total - host.reserve;
            return Err(Refused::invalid(format!("{size} is more than this host has for all its VMs, {most}")));
        }
        self.operated.said.reservations.insert(name.clone(), Reservation { name: name.clone(), size, until });
        self.input(Input::Reserve(Reservation { name: name.clone(), size, until }));
        let mut done = done(format!("{size} are reserved for `{name}` for {}", seconds(until - now)));
        let after = self.planner.host_status(now);
        done.notes.push(match after.as_ref().map(|h| h.reservations.iter().any(|r| r.name == name && r.ready)) {
            None => "nothing is known of this host's memory: no room can be made".to_owned(),
            Some(true) => "there is room: the VM may start".to_owned(),
            Some(false) => "room is being made: `ballast-host status` says when it is ready".to_owned(),
        });
        if self.is_dry_run() {
            done.notes.push("this is a dry run: nothing is ordered".to_owned());
        }
        Ok(done)
    }

    fn unreserve(&mut self, name: &VmName) -> Answer {
        if self.operated.said.reservations.remove(name).is_none() {
            let names: Vec<&str> = self.operated.said.reservations.keys().map(|n| n.0.as_str()).collect();
            let rest = if names.is_empty() {
                "nor for any other VM".to_owned()
            } else {
                format!("only for {}", names.join(", "))
            };
            return Err(Refused::unknown(format!("nothing is reserved for `{name}`, {rest}")));
        }
        self.input(Input::Unreserve { name: name.clone() });
        Ok(done(format!("nothing is reserved for `{name}` any more")))
    }

    /// Takes memory from whoever can spare it, or says what would be taken.
    pub(super) fn reclaim(&mut self, who: &Operator, request: &ReclaimRequest) -> Result<Reclaimed, Refused> {
        let asked = checked_size(request.size)?;
        self.under_our_law("reclaimed")?;
        let takings = self.planner.plan_reclaim(self.clock.now(), asked);
        let total = takings.iter().map(|t| t.from - t.to).sum();
        let dry_run = request.dry_run || self.is_dry_run();
        if !request.dry_run {
            tracing::info!(user = %who, uid = who.uid, %asked, %total, "memory is wanted back");
            self.input(Input::Reclaim { size: asked });
        }
        Ok(Reclaimed { asked, total, dry_run, takings })
    }

    fn choose_law(&mut self, law: LawName) -> Done {
        self.rule(self.config.laws.of(law));
        let mut done = done(format!("the law is `{law}`"));
        let configured = self.config.law.name();
        if configured != law {
            let file = self.config.file.display();
            done.notes.push(format!("after a restart it is `{configured}` again: {file} says so"));
        }
        let held: Vec<&str> = self.operated.said.holds.keys().map(|vm| vm.0.as_str()).collect();
        if law != LawName::Ballast && !held.is_empty() {
            done.notes.push(format!("it knows no holds; these wait until `ballast` rules again: {}", held.join(", ")));
        }
        done
    }

    fn set_dry_run(&mut self, on: bool) -> Done {
        self.operated.said.dry_run = Some(on);
        self.operated.said.lost = None;
        self.tell_mode();
        let mut done = done(if on {
            "dry run: decisions are made and written down, and nothing is ordered".to_owned()
        } else {
            "no dry run any more: decisions are orders".to_owned()
        });
        let squeezed = self.planner.vms().filter(|(_, vm)| vm.kept() < vm.max()).count();
        if on && squeezed > 0 {
            done.notes.push(format!(
                "{squeezed} VMs have less than all of their memory, and what they ask for is refused until `dry-run off`"
            ));
        }
        if !on && self.config.daemon.dry_run {
            let file = self.config.file.display();
            done.notes.push(format!("after a restart it is a dry run again: {file} says so"));
        }
        done
    }
}
