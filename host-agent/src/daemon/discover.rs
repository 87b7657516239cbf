//! Which VMs there are: asked of every hypervisor at the start, now and then, and whenever one says that something
//! changed. An answer is compared with what is known, so that the planner hears of changes only.

use super::{Daemon, Event, manage};
use crate::config::{Address, Config};
use crate::control;
use crate::hypervisor::Qmp;
use crate::hypervisor::{self, Hypervisor, State, VmFacts};
use ballast_planner::{Facts, Input, VmName};
use ballast_protocol::GuestMessage;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::time::Duration;

/// How often the hypervisors are asked although none said that anything changed.
pub(super) const EVERY: Duration = Duration::from_secs(5);

/// A hypervisor, and whether it answered last time.
pub struct Backend {
    name: String,
    hypervisor: Arc<dyn Hypervisor>,
    /// What went wrong the last time; `None`: it answered.
    error: Option<String>,
    asked: bool,
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backend").field("name", &self.name).field("error", &self.error).finish_non_exhaustive()
    }
}

impl Backend {
    fn new(name: String, hypervisor: Arc<dyn Hypervisor>) -> Self {
        Self { name, hypervisor, error: None, asked: false }
    }

    pub(super) fn hypervisor(&self) -> Arc<dyn Hypervisor> {
        Arc::clone(&self.hypervisor)
    }

    pub(super) fn status(&self) -> control::HypervisorStatus {
        control::HypervisorStatus { name: self.name.clone(), error: self.error.clone() }
    }
}

/// The hypervisors that the configuration names. One that is away is waited for.
///
/// # Errors
/// libvirt's client library cannot be used at all.
pub fn backends(config: &Config, events: &mpsc::Sender<Event>) -> Result<Vec<Backend>, hypervisor::Error> {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let events = events.clone();
    tokio::spawn(async move {
        while let Some(event) = receiver.recv().await {
            if events.send(Event::Hypervisor(event)).await.is_err() {
                return;
            }
        }
    });
    let mut all = Vec::new();
    for vm in &config.vms {
        if let Some(path) = &vm.qmp {
            let name = format!("QMP {} ({})", path.display(), vm.name);
            all.push(Backend::new(name, Arc::new(Qmp::new(vm.name.clone(), path.clone(), sender.clone()))));
        }
    }
    #[cfg(feature = "libvirt")]
    if let Some(libvirt) = &config.libvirt {
        let connection = hypervisor::Libvirt::new(&libvirt.uri, sender)?;
        all.push(Backend::new(format!("libvirt {}", libvirt.uri), Arc::new(connection)));
    }
    Ok(all)
}

impl Daemon {
    /// Asks every hypervisor that is not being asked already.
    pub(super) fn rediscover(&mut self) {
        for (number, backend) in self.backends.iter_mut().enumerate() {
            if std::mem::replace(&mut backend.asked, true) {
                continue;
            }
            let (hypervisor, events) = (backend.hypervisor(), self.events.clone());
            tokio::spawn(async move {
                let asked = tokio::task::spawn_blocking(move || hypervisor.vms()).await;
                let vms = match asked {
                    Ok(answer) => answer.map_err(|e| crate::chain(&e)),
                    Err(panic) => Err(format!("the hypervisor's client panicked: {panic}")),
                };
                let _ = events.send(Event::Discovered { backend: number, vms }).await;
            });
        }
    }

    pub(super) fn discovered(&mut self, number: usize, vms: Result<Vec<VmFacts>, String>) {
        let backend = &mut self.backends[number];
        backend.asked = false;
        let found = match vms {
            Err(error) => {
                if backend.error.is_none() {
                    tracing::warn!(hypervisor = backend.name, %error, "no answer; it will be asked again");
                }
                backend.error = Some(error);
                return;
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
    }

    fn found(&mut self, backend: usize, name: VmName, facts: VmFacts) {
        let reachable = self.planner.vm(&name).is_some_and(|vm| vm.actual.is_some());
        let known = self.vms.get(&name);
        if let Some(known) = known
            && known.backend != backend
        {
            // Two hypervisors claim the same name; the first one keeps it.
            return;
        }
        let is_new = known.is_none();
        if known.is_some_and(|k| same(&k.facts, &facts)) && reachable {
            return;
        }
        let input = Input::Vm {
            vm: name.clone(),
            facts: Facts {
                max: facts.max,
                actual: facts.actual,
                running: facts.state == State::Running,
                balloon: facts.has_balloon,
                deflate_on_oom: facts.deflate_on_oom,
            },
            settings: self.settings_for(&name, &facts),
        };
        if let Some(known) = self.vms.get_mut(&name) {
            known.facts = facts;
        } else {
            tracing::info!(vm = %name, max = %facts.max, actual = %facts.actual, "VM found");
            let managed = manage(self, backend, facts);
            self.vms.insert(name.clone(), managed);
        }
        self.input(input);
        if is_new {
            self.resume_operated_for(&name);
        }
        if is_new && let Some(session) = self.sessions.get(&name) {
            // Its agent was faster than its hypervisor.
            let hello = session.hello.clone();
            self.command(&name, crate::actuator::Command::Agent(true));
            self.input(Input::Guest { vm: name, message: GuestMessage::Hello(hello) });
        }
    }

    pub(super) fn settings_for(&self, name: &VmName, facts: &VmFacts) -> ballast_planner::VmSettings {
        let mut settings = self.config.settings(name).clone();
        if let Some(guarantee) = facts.min_guarantee {
            settings.min = settings.min.max(guarantee);
        }
        settings.exempt |= self.operated.is_exempt(name);
        settings
    }

    fn forget(&mut self, vm: &VmName) {
        tracing::info!(%vm, "VM gone");
        if let Some(managed) = self.vms.remove(vm) {
            let _ = managed.commands.send(crate::actuator::Command::Finish);
        }
        self.sessions.remove(vm);
        self.remembered.remove(vm);
        self.probed.remove(vm);
        self.probe(crate::prober::Command::Runs(vm.clone(), false));
        self.input(Input::VmGone { vm: vm.clone() });
    }

    pub(super) fn hypervisor_event(&mut self, event: hypervisor::Event) {
        use hypervisor::What;
        tracing::debug!(?event, "hypervisor event");
        let vm = event.vm;
        match event.what {
            What::Paused => self.input(Input::Running { vm, running: false }),
            What::Resumed => self.input(Input::Running { vm, running: true }),
            What::Reset => {
                // The agent went with the old kernel; its connection may linger in the vsock device.
                self.sessions.remove(&vm);
                self.command(&vm, crate::actuator::Command::Agent(false));
                self.input(Input::Rebooted { vm });
            }
            // Balloon sizes come from the actuators: this event is sent once a second at most, and late.
            What::BalloonMoved(_) => {}
            What::Started | What::Stopped | What::ConnectionLost(_) | What::ConnectionBack => {
                self.rediscover();
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
