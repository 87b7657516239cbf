//! The configuration read again while everything goes on: by SIGHUP, or `ballast-host reload`.
//!
//! ```text
//!   file --examine--> what can be used, what is refused --merge with the old one--> what rules from now on --> applied
//!            |                                                |
//!            '-- no TOML, a wrong [daemon]...                 '-- the rest cannot be together with a VM that stays
//!                              nothing changes
//! ```
//!
//! All of it is read and checked before anything changes. A `[[vm]]` that is wrong is refused alone: a VM that was there
//! goes on as it was, for a mistake in its table is no reason to let go of it; one that libvirt has and that no right table
//! named before is hands off, for the table may say so, or guarantee it more than the defaults do. What a running daemon
//! cannot change (sockets it has bound, the place of its state) stays, and is named. What an operator changed since by the
//! control socket is not touched unless the file says something new about it: only what differs between the old file and
//! the new one is applied.

use super::listen::cannot_call;
use super::{Daemon, targets};
use crate::actuator::{Command, Polling};
use crate::config::{Address, Config, RefusedVm, Vm};
use crate::prober::Prober;
use ballast_planner::{Facts, Input, LawSettings, VmName, VmSettings};
use ballast_protocol::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::PathBuf;
use tokio::sync::mpsc;

/// What came of a reload, in words for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// What is different now.
    pub changed: Vec<String>,
    /// What the file says and was not done, with place and mend.
    pub refused: Vec<String>,
}

/// How long, and what that is.
const HANDS_OFF: &str = "until it is corrected and read by `ballast-host reload`: it gets and keeps all its memory";

/// What is to rule, before anything of it does.
#[derive(Debug)]
struct Merged {
    config: Config,
    refused: Vec<String>,
    /// Those of them that are whole tables.
    tables: Vec<String>,
}

impl Daemon {
    /// Reads the file again and applies what can be.
    pub(super) async fn reload(&mut self) -> Reloaded {
        self.notifier.reloading();
        let file = self.config.file.clone();
        let merged = Config::examine(&file).map_err(|e| e.to_string()).and_then(|new| merge(&self.config, new));
        let reloaded = match merged {
            Ok(merged) => self.adopt(merged).await,
            Err(problem) => {
                Reloaded { refused: vec![format!("{problem}; nothing has changed")], ..Reloaded::default() }
            }
        };
        for refused in &reloaded.refused {
            tracing::warn!("reload: {refused}");
        }
        for changed in &reloaded.changed {
            tracing::info!("reload: {changed}");
        }
        let (changed, refused) = (reloaded.changed.len(), reloaded.refused.len());
        tracing::info!(file = %file.display(), changed, refused, "the configuration was read again");
        self.notifier.ready();
        reloaded
    }

    async fn adopt(&mut self, merged: Merged) -> Reloaded {
        let Merged { config: new, mut refused, tables } = merged;
        self.refused = tables;
        let mut changed = Vec::new();
        // What goes makes room for what comes: a path may pass from one VM to another.
        let going: Vec<Vm> = self.config.vms.iter().filter(|old| find(&new, &old.name).is_none()).cloned().collect();
        for old in &going {
            self.close(old);
            self.let_go(&old.name, true);
            changed.push(format!("VM `{}` is no longer named in the file", old.name));
        }
        let staying: Vec<(Vm, Vm)> =
            new.vms.iter().filter_map(|vm| Some((find(&self.config, &vm.name)?.clone(), vm.clone()))).collect();
        for (old, vm) in &staying {
            if let Some(places) = places(old, vm) {
                changed.push(format!("VM `{}`: {places}", vm.name));
            }
            if old.agent != vm.agent {
                self.close(old);
            }
            if old.qmp != vm.qmp {
                self.let_go(&vm.name, false);
            }
        }
        let port = new.daemon.port;
        for vm in &new.vms {
            let old = find(&self.config, &vm.name);
            if (old.is_none_or(|old| old.agent != vm.agent) || self.unheard.contains_key(&vm.name))
                && let Some(Address::Hybrid(path)) = &vm.agent
            {
                match self.listener.add(vm.name.clone(), path.clone()).await {
                    Ok(()) => {
                        self.unheard.remove(&vm.name);
                        changed.push(format!("VM `{}`: its agent may call at {}_{port}", vm.name, path.display()));
                    }
                    Err(error) => {
                        let problem = cannot_call(&error);
                        self.unheard.insert(vm.name.clone(), problem.clone());
                        refused.push(problem);
                    }
                }
            }
            if old.is_none_or(|old| old.qmp != vm.qmp)
                && let Some(path) = &vm.qmp
            {
                self.backends.add_qmp(&vm.name, path);
            }
            if old.is_none() {
                changed.push(format!("VM `{}` is taken up", vm.name));
            }
        }
        let old = std::mem::replace(&mut self.config, new);
        self.whole_daemon(&old, &mut changed);
        self.settle_all(&mut changed);
        self.rediscover_changed();
        Reloaded { changed, refused }
    }

    /// What is not about a single VM.
    fn whole_daemon(&mut self, old: &Config, changed: &mut Vec<String>) {
        let (law, budget, reserve) = (self.config.law.clone(), self.config.budget, self.config.reserve);
        let mut differs = |what: &str, old: &dyn Display, new: &dyn Display| {
            let (old, new) = (old.to_string(), new.to_string());
            let differs = old != new;
            if differs {
                changed.push(format!("{what}: {old} -> {new}"));
            }
            differs
        };
        let daemon = &self.config.daemon;
        differs("on-exit", &format!("{:?}", old.daemon.on_exit), &format!("{:?}", daemon.on_exit));
        let mode = differs("dry-run", &old.daemon.dry_run, &daemon.dry_run);
        let size = differs("journal max-size", &old.journal.max_size, &self.config.journal.max_size);
        let by_default = |size: Option<Bytes>| size.map_or("by default".to_owned(), |s| s.to_string());
        let pool = differs("budget", &by_default(old.budget), &by_default(budget))
            | differs("reserve", &by_default(old.reserve), &by_default(reserve));
        let other_law = old.law != law;
        if other_law && !differs("law", &old.law.name(), &law.name()) {
            changed.push(format!("the constants of law {}", law.name()));
        }
        let (prober, seen) = (old.prober != self.config.prober, targets(&old.vms) != targets(&self.config.vms));
        if prober {
            changed.push("the prober's settings".to_owned());
        }

        if mode {
            // The file says something new about it: what an operator said before is over.
            self.operated.forget_mode(self.clock.now());
            self.tell_mode();
        }
        if let (true, Some(journal)) = (size, &mut self.journal) {
            journal.resize(self.config.journal.max_size.0);
        }
        if pool {
            self.input(Input::Pool { budget, reserve });
        }
        if other_law {
            self.rule(law);
        }
        if prober || seen {
            self.probe_anew();
        }
    }

    /// Another law rules from now on.
    pub(super) fn rule(&mut self, law: LawSettings) {
        let polling = Polling::under(law.name());
        self.input(Input::Law { law });
        for managed in self.vms.values() {
            let _ = managed.commands.send(Command::Polling(polling));
        }
    }

    /// What the prober has learnt is small, and what it probes is not what it was.
    fn probe_anew(&mut self) {
        self.probing.abort();
        let (sender, commands) = mpsc::unbounded_channel();
        let targets = targets(&self.config.vms);
        let prober = Prober::new(self.config.prober.clone(), &targets, commands, self.events.clone(), self.clock);
        (self.prober, self.probing) = (sender, tokio::spawn(prober.run()));
        self.probed.retain(|name, _| targets.iter().any(|t| t.vm == *name && t.service.is_some()));
        for name in self.vms.keys() {
            self.tell_running(name);
        }
    }

    /// Hands every VM its settings, if they are others than it has.
    fn settle_all(&mut self, changed: &mut Vec<String>) {
        for name in self.vms.keys().cloned().collect::<Vec<_>>() {
            if let Some(differences) = self.settle(&name) {
                changed.push(format!("VM `{name}`: {differences}"));
            }
        }
    }

    /// Hands a VM the settings it is to have by file, metadata and operators; what differs from those it has, in words.
    pub(super) fn settle(&mut self, name: &VmName) -> Option<String> {
        let facts = self.vms.get(name)?.facts.clone();
        let settings = self.settings_for(name, &facts);
        let vm = self.planner.vm(name)?;
        if vm.settings == settings {
            return None;
        }
        let differences = differences(&vm.settings, &settings);
        // Without its hypervisor nothing is known of it; found again, it gets them.
        if let Some(actual) = vm.actual {
            let facts = Facts { actual: actual.what, ..vm.facts.clone() };
            self.input(Input::Vm { vm: name.clone(), facts, settings });
        }
        Some(differences)
    }

    /// The agent of a VM does not call here any more.
    fn close(&mut self, old: &Vm) {
        if old.agent.is_none() {
            return;
        }
        self.listener.remove(&old.name);
        self.unheard.remove(&old.name);
        if let Some(number) = self.sessions.get(&old.name).map(|s| s.number) {
            self.end_session(old.name.clone(), number, "the configuration has another address for it".to_owned());
        }
    }

    /// A VM's QEMU is not this daemon's business any more. `gives`: nor is the VM, which gets all its memory back, as
    /// nobody would be there to give it any when it needs it.
    fn let_go(&mut self, vm: &VmName, gives: bool) {
        let Some(number) = self.backends.qmp_of(vm) else { return };
        let backend = self.backends.remove(number);
        let mut last = None;
        if self.vms.get(vm).is_some_and(|m| m.backend == number) {
            if gives {
                self.input(Input::Release { vm: vm.clone() });
            }
            if let Some(managed) = self.vms.remove(vm) {
                let _ = managed.commands.send(Command::Finish);
                last = Some(managed.task);
            }
            self.forget(vm);
        }
        tokio::spawn(async move {
            if let Some(task) = last {
                // One that panicked has nothing under way any more.
                let _ = task.await;
            }
            // Ends its thread, for which it may have to wait.
            let _ = tokio::task::spawn_blocking(move || drop(backend)).await;
        });
    }
}

fn find<'a>(config: &'a Config, name: &VmName) -> Option<&'a Vm> {
    config.vms.iter().find(|vm| vm.name == *name)
}

/// What is to rule after `old`.
///
/// # Errors
/// What is left of the new file cannot be together with what stays of the old one.
fn merge(old: &Config, mut config: Config) -> Result<Merged, String> {
    let mut tables = std::mem::take(&mut config.refused);
    let mut refused = Vec::new();
    keep_what_is_bound(old, &mut config, &mut refused);

    let named: BTreeSet<&VmName> = tables.iter().filter_map(|t| t.name.as_ref()).collect();
    // A table without a name may be any VM's.
    let anybody = tables.iter().any(|t| t.name.is_none());
    let kept: Vec<Vm> = old
        .vms
        .iter()
        .filter(|vm| find(&config, &vm.name).is_none() && (anybody || named.contains(&vm.name)))
        .cloned()
        .collect();
    let texts = tables.iter().map(|table| {
        let stays = table.name.as_ref().and_then(|name| kept.iter().find(|vm| vm.name == *name));
        match (&table.name, stays) {
            (Some(_), Some(vm)) if vm.is_stand_in => format!("{}; hands off this VM {HANDS_OFF}", table.error),
            (Some(_), Some(_)) => format!("{}; this VM goes on as it was", table.error),
            (None, _) => format!("{}; no VM is let go of, because it may be any of them", table.error),
            (Some(_), None) => told(&config, table),
        }
    });
    let texts: Vec<String> = texts.collect();
    refused.extend(texts.iter().cloned());
    for vm in kept {
        if let Some((other, what)) = config.vms.iter().find_map(|other| Some((other, shares(&vm, other)?))) {
            return Err(format!(
                "{}: VM `{}` goes on as it was, because its table is wrong, and `{}` has the same {what}; correct the table",
                old.file.display(),
                vm.name,
                other.name
            ));
        }
        config.vms.push(vm);
    }
    if config.vms.is_empty() && config.libvirt.is_none() {
        return Err(format!("{}: there is nothing to manage", old.file.display()));
    }
    if let Some(problem) = config.overcommitted().filter(|_| !tables.is_empty()) {
        return Err(format!("{}: {problem}", old.file.display()));
    }
    // Whom a table without a name is about has the defaults so far, and goes on with them; unless it was so at the start.
    let nameless = old.refused.iter().any(|t| t.name.is_none());
    tables.retain(|t| t.name.is_some() || nameless);
    config.refused = tables;
    Ok(Merged { config, refused, tables: texts })
}

/// A table that is refused, and what that means for its VM when there was no better one.
pub(super) fn told(config: &Config, table: &RefusedVm) -> String {
    let used = table.name.as_ref().and_then(|name| find(config, name));
    let means = match &table.name {
        Some(_) if used.is_some_and(|vm| vm.is_stand_in) => format!("hands off this VM {HANDS_OFF}"),
        Some(_) if used.is_some() => "this table is not used".to_owned(),
        _ if config.libvirt.is_none() => "this VM is not taken up".to_owned(),
        Some(_) => format!("hands off this VM {HANDS_OFF}"),
        None => format!("it may be about any VM that no other table names: hands off each of them {HANDS_OFF}"),
    };
    format!("{}; {means}", table.error)
}

/// Where a VM is found, as far as it differs, for people. A new hybrid vsock is told when it can be called.
fn places(old: &Vm, new: &Vm) -> Option<String> {
    fn shown<T: ToString>(place: Option<T>) -> String {
        place.map_or_else(|| "none".to_owned(), |p| p.to_string())
    }
    let all = |vm: &Vm| {
        let (vsock, cid) = match &vm.agent {
            Some(Address::Hybrid(path)) => (Some(path.display().to_string()), None),
            Some(Address::Cid(cid)) => (None, Some(*cid)),
            None => (None, None),
        };
        [
            ("qmp", shown(vm.qmp.as_ref().map(|p| p.display()))),
            ("vsock", shown(vsock)),
            ("cid", shown(cid)),
            ("service", shown(vm.service)),
            ("interface", shown(vm.interface.as_ref())),
        ]
    };
    let pairs = all(old).into_iter().zip(all(new));
    let told = pairs.filter(|((key, a), (_, b))| a != b && (*key != "vsock" || b == "none"));
    let texts: Vec<String> = told.map(|((key, a), (_, b))| format!("{key} {a} -> {b}")).collect();
    (!texts.is_empty()).then(|| texts.join(", "))
}

/// What two VMs must not have both.
fn shares(a: &Vm, b: &Vm) -> Option<&'static str> {
    fn same<T: PartialEq>(a: &Option<T>, b: &Option<T>) -> bool {
        a.is_some() && a == b
    }
    [
        (same(&a.qmp, &b.qmp), "`qmp`"),
        (same(&a.agent, &b.agent), "`vsock` or `cid`"),
        (same(&a.service, &b.service), "`service`"),
        (same(&a.interface, &b.interface), "`interface`"),
    ]
    .into_iter()
    .find_map(|(same, what)| same.then_some(what))
}

/// What a running daemon has bound or opened stays as it is.
fn keep_what_is_bound(old: &Config, new: &mut Config, refused: &mut Vec<String>) {
    let file = old.file.display();
    let mut stays = |what: &str, old: &dyn Display, new: &dyn Display| {
        let (old, new) = (old.to_string(), new.to_string());
        if old != new {
            refused.push(format!("{file}: {what} stays {old} until ballast-host is restarted; the file says {new}"));
        }
    };
    let uri = |config: &Config| config.libvirt.as_ref().map_or("absent".to_owned(), |l| format!("`{}`", l.uri));
    let (a, b) = (&old.daemon, &new.daemon);
    stays("[daemon] state-dir", &a.state_dir.display(), &b.state_dir.display());
    stays("[daemon] control-socket", &a.control_socket.display(), &b.control_socket.display());
    let group = |group: &Option<String>| group.clone().unwrap_or_else(|| "the daemon's own".to_owned());
    stays("[daemon] control-group", &group(&a.control_group), &group(&b.control_group));
    stays("[daemon] port", &a.port, &b.port);
    stays("[daemon] vsock", &a.vsock, &b.vsock);
    let model =
        |file: &Option<PathBuf>| file.as_ref().map_or("that in the binary".to_owned(), |f| f.display().to_string());
    stays("[daemon] model", &model(&a.model), &model(&b.model));
    stays("[journal] enabled", &old.journal.enabled, &new.journal.enabled);
    stays("[journal] path", &old.journal.path.display(), &new.journal.path.display());
    stays("[libvirt]", &uri(old), &uri(new));
    let metrics = |config: &Config| match &config.metrics {
        Some(metrics) => [&[metrics.listen.to_string()], metrics.names.as_slice()].concat().join(" "),
        None => "off".to_owned(),
    };
    stays("[metrics]", &metrics(old), &metrics(new));
    new.daemon = crate::config::Daemon { on_exit: b.on_exit, dry_run: b.dry_run, ..a.clone() };
    new.journal = crate::config::Journal { max_size: new.journal.max_size, ..old.journal.clone() };
    new.libvirt = old.libvirt.clone();
    new.metrics = old.metrics.clone();
}

/// What differs between two settings, for people.
fn differences(old: &VmSettings, new: &VmSettings) -> String {
    let size = |size: Option<Bytes>| match size {
        None | Some(Bytes::MAX) => "all it has".to_owned(),
        Some(size) => size.to_string(),
    };
    let show = |s: &VmSettings| {
        [
            ("min", s.min.to_string()),
            ("max", size(Some(s.max))),
            ("headroom", s.headroom.to_string()),
            ("step", s.step.to_string()),
            ("cool-down", s.cool_down.to_string()),
            ("returning", s.returning.to_string()),
            ("cold-after", s.cold_after.to_string()),
            ("pace", s.pace.to_string()),
            ("take-reported", s.take_reported.to_string()),
            ("exempt", s.exempt.to_string()),
            ("allow-without-deflate-on-oom", s.allow_without_deflate_on_oom.to_string()),
            ("weight", s.weight.to_string()),
            ("class", s.class.to_string()),
            ("predictor", s.predictor.to_string()),
            ("loss-budget", s.loss_budget.to_string()),
            ("shares", s.shares.to_string()),
            ("fixed-size", size(s.fixed_size)),
        ]
    };
    let pairs = show(old).into_iter().zip(show(new)).filter(|(a, b)| a != b);
    let texts: Vec<String> = pairs.map(|((key, a), (_, b))| format!("{key} {a} -> {b}")).collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests;
