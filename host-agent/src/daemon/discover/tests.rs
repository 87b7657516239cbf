use super::*;
use crate::hypervisor::{BalloonStatistics, Error};
use ballast_protocol::Bytes;
use tempfile::TempDir;

/// A hypervisor that has what it is asked for, and does as it is told.
#[derive(Debug)]
struct Obeys;

impl Hypervisor for Obeys {
    fn vms(&self) -> Result<Vec<VmFacts>, Error> {
        Ok(Vec::new())
    }

    fn facts(&self, vm: &VmName) -> Result<VmFacts, Error> {
        Ok(facts(vm))
    }

    fn balloon(&self, _: &VmName) -> Result<Bytes, Error> {
        Ok(Bytes::mib(512))
    }

    fn order(&self, _: &VmName, _: Bytes) -> Result<(), Error> {
        Ok(())
    }

    fn statistics(&self, _: &VmName) -> Result<BalloonStatistics, Error> {
        Ok(BalloonStatistics::default())
    }
}

fn facts(vm: &VmName) -> VmFacts {
    VmFacts {
        name: vm.clone(),
        uuid: None,
        state: State::Running,
        max: Bytes::mib(512),
        actual: Bytes::mib(512),
        has_balloon: true,
        deflate_on_oom: Some(true),
        free_page_reporting: None,
        cid: None,
        min_guarantee: None,
        migrating: false,
        metadata: Ok(Vec::new()),
    }
}

/// A daemon with two hypervisors: a monitor of the VM `db`, and one that may have any VM, as libvirt does.
async fn daemon(folder: &TempDir) -> (Daemon, usize, usize) {
    let path = folder.path().display();
    let text = format!(
        "[daemon]\nstate-dir = \"{path}/state\"\ncontrol-socket = \"{path}/control\"\nvsock = false\n[journal]\n\
         enabled = false\n[metrics]\nenabled = false\n[[vm]]\nname = \"db\"\nqmp = \"{path}/qmp\"\n"
    );
    let mut daemon = Daemon::start(Config::parse(Path::new("b.toml"), &text).unwrap()).await.unwrap();
    daemon.backends.first = None;
    let monitor = daemon.backends.qmp_of(&"db".into()).unwrap();
    let any = daemon.backends.next;
    daemon.backends.add(Backend::new("libvirt".to_owned(), None, Arc::new(Obeys)));
    (daemon, monitor, any)
}

#[tokio::test]
async fn of_two_vms_of_one_name_the_one_with_a_monitor_of_its_own_is_managed() {
    for monitor_is_first in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let (mut daemon, monitor, any) = daemon(&folder).await;
        let [first, second] = if monitor_is_first { [monitor, any] } else { [any, monitor] };
        let db = VmName::from("db");
        daemon.discovered(first, Ok(vec![facts(&db)]));
        assert_eq!(daemon.vms[&db].backend, first);
        for _ in 0..2 {
            for backend in [second, first] {
                daemon.discovered(backend, Ok(vec![facts(&db)]));
                assert_eq!(daemon.vms[&db].backend, monitor, "the monitor is first: {monitor_is_first}");
            }
        }
        assert_eq!(daemon.planner.vms().count(), 1);
        assert!(daemon.backends.doubled.contains(&db));
        // The other has only lost its claim: without the monitor's VM it is managed again.
        daemon.discovered(monitor, Ok(Vec::new()));
        assert!(!daemon.vms.contains_key(&db));
        daemon.discovered(any, Ok(vec![facts(&db)]));
        assert_eq!(daemon.vms[&db].backend, any);
    }
}

#[tokio::test]
async fn a_vm_that_was_resumed_unheard_is_found_running() {
    let folder = tempfile::tempdir().unwrap();
    let (mut daemon, _, any) = daemon(&folder).await;
    let web = VmName::from("web");
    daemon.discovered(any, Ok(vec![facts(&web)]));
    let runs = |daemon: &Daemon| daemon.planner.vm(&web).unwrap().facts.running;
    let say = |daemon: &mut Daemon, what| daemon.hypervisor_event(hypervisor::Event { vm: web.clone(), what });
    say(&mut daemon, hypervisor::What::Paused);
    assert!(!runs(&daemon));
    // `Resumed` was lost with a connection.
    daemon.discovered(any, Ok(vec![facts(&web)]));
    assert!(runs(&daemon));
    // And the other way round.
    say(&mut daemon, hypervisor::What::Paused);
    say(&mut daemon, hypervisor::What::Resumed);
    assert!(runs(&daemon));
    daemon.discovered(any, Ok(vec![VmFacts { state: State::Paused, ..facts(&web) }]));
    assert!(!runs(&daemon));
}

#[tokio::test]
async fn a_vm_that_cannot_be_described_stays_as_it_was_and_is_not_taken_up() {
    let folder = tempfile::tempdir().unwrap();
    let (mut daemon, _, any) = daemon(&folder).await;
    let (web, new) = (VmName::from("web"), VmName::from("new"));
    daemon.discovered(any, Ok(vec![facts(&web)]));
    // As `Libvirt` lists them.
    let undescribed = |vm: &VmName| VmFacts {
        state: State::Hung,
        max: Bytes::ZERO,
        actual: Bytes::ZERO,
        has_balloon: false,
        migrating: true,
        ..facts(vm)
    };
    daemon.discovered(any, Ok(vec![undescribed(&web), undescribed(&new)]));
    assert_eq!(
        daemon.planner.vms().map(|(name, vm)| (name, vm.facts.max)).collect::<Vec<_>>(),
        [(&web, Bytes::mib(512))]
    );
    assert!(!daemon.vms.contains_key(&new));
}
