//! Which VMs there are: asked of every hypervisor at the start, now and then, and whenever one says that something
//! changed. An answer is compared with what is known, so that the planner hears of changes only.

use super::{Daemon, Event, manage};
use crate::config::{Address, Config};
use crate::control;
use crate::hypervisor::{self, Events, Hypervisor, Qmp, State, VmFacts};
use ballast_planner::{Facts, Input, VmName};
use ballast_protocol::GuestMessage;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Duration;

/// How often the hypervisors are asked although none said that anything changed.
pub(super) const EVERY: Duration = Duration::from_secs(5);
/// In so many parts at most, so that 1,000 monitors are not asked at one moment while an order waits behind them.
const PARTS: usize = 200;
/// Hypervisors that are asked at a time. One that hangs takes 2 s; orders do not wait for any of this.
const ASKED_AT_ONCE: usize = 32;

/// A hypervisor, and whether it answered last time.
pub struct Backend {
    name: String,
    /// The one VM it is of, when it is a QEMU.
    vm: Option<VmName>,
    hypervisor: Arc<dyn Hypervisor>,
    /// What went wrong the last time; `None`: it answered.
    error: Option<String>,
    asked: bool,
    /// Something happened while it was being asked: its answer may be of before.
    again: bool,
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backend").field("name", &self.name).field("error", &self.error).finish_non_exhaustive()
    }
}

impl Backend {
    fn new(name: String, vm: Option<VmName>, hypervisor: Arc<dyn Hypervisor>) -> Self {
        Self { name, vm, hypervisor, error: None, asked: false, again: false }
    }

    /// A QEMU with a monitor of its own.
    pub(super) fn qmp(vm: &VmName, path: &Path, events: Events) -> Self {
        let name = format!("QMP {} ({vm})", path.display());
        Self::new(name, Some(vm.clone()), Arc::new(Qmp::new(vm.clone(), path.to_owned(), events)))
    }

    pub(super) fn hypervisor(&self) -> Arc<dyn Hypervisor> {
        Arc::clone(&self.hypervisor)
    }

    pub(super) fn status(&self) -> control::HypervisorStatus {
        control::HypervisorStatus { name: self.name.clone(), error: self.error.clone() }
    }
}

/// All hypervisors, each by a number that none of them gets a second time.
#[derive(Debug)]
pub struct Backends {
    all: BTreeMap<usize, Backend>,
    next: usize,
    events: Events,
    /// The first look after the start, until it is complete.
    first: Option<FirstLook>,
    /// Whose turn it is at the next regular look.
    turn: usize,
    /// VMs that two of them have: told once.
    doubled: BTreeSet<VmName>,
    /// To ask one of them: a blocking thread for each of 1,000 at once would stay for good.
    asking: Arc<Semaphore>,
}

/// A part of the regular look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// Until the next part.
    pub pause: Duration,
    /// All have been asked since the last time that this was so.
    pub is_complete: bool,
}

/// What a daemon that starts has been told so far. It hands the planner all VMs at once: one that is not known yet has
/// memory all the same, and the first to be found would be given what the others keep (promise P2).
#[derive(Debug)]
struct FirstLook {
    missing: BTreeSet<usize>,
    answers: Vec<(usize, Found)>,
}

type Found = Result<Vec<VmFacts>, String>;

impl Backends {
    /// The hypervisors that the configuration names. One that is away is waited for.
    ///
    /// # Errors
    /// libvirt's client library cannot be used at all.
    pub fn new(config: &Config, events: &mpsc::Sender<Event>) -> Result<Self, hypervisor::Error> {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let events = events.clone();
        tokio::spawn(async move {
            while let Some(event) = receiver.recv().await {
                if events.send(Event::Hypervisor(event)).await.is_err() {
                    return;
                }
            }
        });
        let mut this = Self {
            all: BTreeMap::new(),
            next: 0,
            events: sender,
            first: None,
            turn: 0,
            doubled: BTreeSet::new(),
            asking: Arc::new(Semaphore::new(ASKED_AT_ONCE)),
        };
        for vm in &config.vms {
            if let Some(path) = &vm.qmp {
                this.add_qmp(&vm.name, path);
            }
        }
        #[cfg(feature = "libvirt")]
        if let Some(libvirt) = &config.libvirt {
            let connection = hypervisor::Libvirt::new(&libvirt.uri, this.events.clone())?;
            this.add(Backend::new(format!("libvirt {}", libvirt.uri), None, Arc::new(connection)));
        }
        this.first = Some(FirstLook { missing: this.all.keys().copied().collect(), answers: Vec::new() });
        Ok(this)
    }

    fn add(&mut self, backend: Backend) {
        self.all.insert(self.next, backend);
        self.next += 1;
    }

    /// One more QEMU.
    pub(super) fn add_qmp(&mut self, vm: &VmName, path: &Path) {
        self.add(Backend::qmp(vm, path, self.events.clone()));
    }

    /// Takes one out that is not to be asked any more.
    pub(super) fn remove(&mut self, number: usize) -> Option<Backend> {
        self.all.remove(&number)
    }

    /// The one that is a QEMU of this VM.
    pub(super) fn qmp_of(&self, vm: &VmName) -> Option<usize> {
        self.all.iter().find(|(_, b)| b.vm.as_ref() == Some(vm)).map(|(number, _)| *number)
    }

    pub(super) fn get(&self, number: usize) -> Option<&Backend> {
        self.all.get(&number)
    }

    pub(super) fn status(&self) -> Vec<control::HypervisorStatus> {
        self.all.values().map(Backend::status).collect()
    }
}

impl Daemon {
    /// Asks every hypervisor that is not being asked already.
    pub(super) fn rediscover(&mut self) {
        for number in self.backends.all.keys().copied().collect::<Vec<_>>() {
            self.ask(number);
        }
    }

    /// Asks the hypervisors that may have this VM, because something happened to it: who is being asked already is asked
    /// again.
    pub(super) fn rediscover_vm(&mut self, vm: &VmName) {
        let mut numbers = Vec::new();
        for (number, backend) in &mut self.backends.all {
            if backend.vm.as_ref().is_none_or(|only| only == vm) {
                backend.again = backend.asked;
                numbers.push(*number);
            }
        }
        for number in numbers {
            self.ask(number);
        }
    }

    /// All of them, because something happened: who is being asked already is asked again.
    pub(super) fn rediscover_changed(&mut self) {
        for backend in self.backends.all.values_mut() {
            backend.again = backend.asked;
        }
        self.rediscover();
    }

    fn ask(&mut self, number: usize) {
        let Some(backend) = self.backends.all.get_mut(&number) else { return };
        if std::mem::replace(&mut backend.asked, true) {
            return;
        }
        let (hypervisor, events) = (backend.hypervisor(), self.events.clone());
        let asking = Arc::clone(&self.backends.asking);
        tokio::spawn(async move {
            // Fails only when it is closed, which nobody does.
            let _permit = asking.acquire_owned().await;
            let asked = tokio::task::spawn_blocking(move || hypervisor.vms()).await;
            let vms = match asked {
                Ok(answer) => answer.map_err(|e| crate::chain(&e)),
                Err(panic) => Err(format!("the hypervisor's client panicked: {panic}")),
            };
            let _ = events.send(Event::Discovered { backend: number, vms }).await;
        });
    }

    /// The regular look, at those whose turn it is. Who has not answered the first one by then is not waited for any longer.
    pub(super) fn look_regularly(&mut self) -> Look {
        self.end_first_look();
        let parts = self.backends.all.len().clamp(1, PARTS);
        let turn = self.backends.turn % parts;
        self.backends.turn = turn + 1;
        for number in self.backends.all.keys().copied().skip(turn).step_by(parts).collect::<Vec<_>>() {
            self.ask(number);
        }
        // At most `PARTS`, which fits.
        Look { pause: EVERY / parts as u32, is_complete: turn + 1 == parts }
    }

    fn end_first_look(&mut self) {
        let Some(first) = self.backends.first.take() else { return };
        for (number, vms) in first.answers {
            self.answered(number, vms);
        }
        // What happened since they answered.
        self.rediscover_changed();
    }

    pub(super) fn discovered(&mut self, number: usize, vms: Found) {
        if let Some(first) = &mut self.backends.first {
            first.missing.remove(&number);
            first.answers.push((number, vms));
            if first.missing.is_empty() {
                self.end_first_look();
            }
            return;
        }
        let again = self.answered(number, vms);
        if again {
            self.ask(number);
        }
    }

    /// Takes a hypervisor's answer; whether it should be asked again.
    fn answered(&mut self, number: usize, vms: Found) -> bool {
        // One that a reload took out has nothing more to say.
        let Some(backend) = self.backends.all.get_mut(&number) else { return false };
        backend.asked = false;
        let again = std::mem::take(&mut backend.again);
        let found = match vms {
            Err(error) => {
                if backend.error.is_none() {
                    tracing::warn!(hypervisor = backend.name, %error, "no answer; it will be asked again");
                }
                backend.error = Some(error);
                // Who cannot answer is not asked the harder for it.
                return false;
            }
            Ok(found) => found,
        };
        if backend.error.take().is_some() {
            tracing::info!(hypervisor = backend.name, "answers again");
        }
        let mut gone: Vec<VmName> =
            self.vms.iter().filter(|(_, m)| m.backend == number).map(|(name, _)| name.clone()).collect();
        for facts in found.into_iter().filter(|f| f.state != State::Off) {
            let name = facts.name.clone();
            gone.retain(|g| *g != name);
            self.found(number, name, facts);
        }
        for vm in gone {
            self.forget(&vm);
        }
        again
    }

    fn found(&mut self, backend: usize, name: VmName, facts: VmFacts) {
        if facts.migrating && self.vms.get(&name).is_some_and(|known| known.backend != backend) {
            // Not here yet: who has it until then keeps it.
            return;
        }
        if !self.has_claim(backend, &name) {
            return;
        }
        let reachable = self.planner.vm(&name).is_some_and(|vm| vm.actual.is_some());
        let known = self.vms.get(&name);
        let is_new = known.is_none();
        if !is_new && facts.state == State::Hung {
            // It is as it was, and its actuator says that it does not answer.
            return;
        }
        if is_new && facts.migrating {
            // It arrives from another host, or is being started: it is found when that is done.
            return;
        }
        let migrated = known.is_some_and(|k| k.facts.migrating);
        if known.is_some_and(|k| same(&k.facts, &facts)) && reachable {
            return;
        }
        let migrates = facts.migrating;
        if migrates && !migrated {
            self.input(Input::Migrating { vm: name.clone(), migrating: true });
        }
        let settings = self.settings_for(&name, &facts);
        let input = Input::Vm {
            vm: name.clone(),
            facts: Facts {
                max: facts.max,
                actual: facts.actual,
                running: facts.state == State::Running,
                balloon: facts.has_balloon,
                deflate_on_oom: facts.deflate_on_oom,
            },
            settings,
        };
        if let Some(known) = self.vms.get_mut(&name) {
            known.facts = facts;
        } else {
            tracing::info!(vm = %name, max = %facts.max, actual = %facts.actual, "VM found");
            let Some(managed) = manage(self, backend, facts) else { return };
            self.vms.insert(name.clone(), managed);
        }
        self.input(input);
        if is_new {
            self.resume_operated_for(&name);
        }
        if migrated && !migrates {
            self.input(Input::Migrating { vm: name.clone(), migrating: false });
        }
        if is_new && let Some(session) = self.sessions.get(&name) {
            // Its agent was faster than its hypervisor.
            let hello = session.hello.clone();
            self.command(&name, crate::actuator::Command::Agent(true));
            self.input(Input::Guest { vm: name, message: GuestMessage::Hello(hello) });
        }
    }

    /// Whether a VM is to be had from this hypervisor. When two have one of that name, it is from the monitor that the file
    /// names for it: whoever wrote that meant this VM, and whichever answers first is chance.
    fn has_claim(&mut self, backend: usize, vm: &VmName) -> bool {
        let Some(other) = self.vms.get(vm).map(|known| known.backend).filter(|other| *other != backend) else {
            return true;
        };
        let is_monitor = |number| self.backends.get(number).is_some_and(|b| b.vm.is_some());
        let wins = is_monitor(backend) && !is_monitor(other);
        let (by, not_by) = if wins { (backend, other) } else { (other, backend) };
        if self.backends.doubled.insert(vm.clone()) {
            let name = |number| self.backends.get(number).map_or("one that is gone", |b| b.name.as_str());
            tracing::warn!(%vm, by = name(by), not_by = name(not_by), "two hypervisors have a VM of this name: one is \
                managed, the other is left alone; rename one, or take `qmp` out of its [[vm]] if both are the same VM");
        }
        if wins {
            self.forget(vm);
        }
        wins
    }

    pub(super) fn forget(&mut self, vm: &VmName) {
        tracing::info!(%vm, "VM gone");
        if let Some(managed) = self.vms.remove(vm) {
            let _ = managed.commands.send(crate::actuator::Command::Finish);
        }
        self.sessions.remove(vm);
        self.remembered.remove(vm);
        self.metadata.remove(vm);
        self.probed.remove(vm);
        self.probe(crate::prober::Command::Runs(vm.clone(), false));
        self.input(Input::VmGone { vm: vm.clone() });
    }

    pub(super) fn hypervisor_event(&mut self, event: hypervisor::Event) {
        use hypervisor::What;
        tracing::debug!(?event, "hypervisor event");
        let vm = event.vm;
        match event.what {
            What::Paused => {
                // So that a look which finds it running is news, also when nobody said that it was resumed.
                if let Some(known) = self.vms.get_mut(&vm) {
                    known.facts.state = State::Paused;
                }
                self.input(Input::Running { vm, running: false });
            }
            What::Resumed => {
                match self.vms.get_mut(&vm) {
                    Some(known) => known.facts.state = State::Running,
                    // It has arrived.
                    None => self.rediscover_vm(&vm),
                }
                self.input(Input::Running { vm, running: true });
            }
            What::Migrates => {
                if let Some(known) = self.vms.get_mut(&vm)
                    && !std::mem::replace(&mut known.facts.migrating, true)
                {
                    self.input(Input::Migrating { vm: vm.clone(), migrating: true });
                }
                self.rediscover_vm(&vm);
            }
            What::Reset => {
                // The agent went with the old kernel; its connection may linger in the vsock device.
                self.sessions.remove(&vm);
                self.command(&vm, crate::actuator::Command::Agent(false));
                self.input(Input::Rebooted { vm });
            }
            // Balloon sizes come from the actuators: this event is sent once a second at most, and late.
            What::BalloonMoved(_) => {}
            What::Started | What::Stopped | What::Changed | What::ConnectionLost(_) | What::ConnectionBack => {
                self.rediscover_vm(&vm);
            }
        }
    }

    /// The VM whose vsock device has this CID: by configuration, else by its hypervisor.
    pub(super) fn vm_of_cid(&self, cid: u32) -> Option<VmName> {
        let configured = self.config.vms.iter().find(|v| v.agent == Some(Address::Cid(cid))).map(|v| v.name.clone());
        configured.or_else(|| self.vms.iter().find(|(_, m)| m.facts.cid == Some(cid)).map(|(name, _)| name.clone()))
    }
}

/// Whether two descriptions differ in nothing but how much the guest keeps just now.
fn same(a: &VmFacts, b: &VmFacts) -> bool {
    VmFacts { actual: b.actual, ..a.clone() } == *b
}

#[cfg(test)]
mod tests;
