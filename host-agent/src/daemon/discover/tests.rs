use super::*;
use crate::control::{Change, Operator};
use crate::hypervisor::{BalloonStatistics, Error};
use ballast_protocol::Bytes;
use tempfile::TempDir;
use tokio::sync::oneshot;

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

#[tokio::test]
async fn a_vm_that_arrives_elsewhere_stays_with_who_has_it_until_it_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let (mut daemon, monitor, any) = daemon(&folder).await;
    let db = VmName::from("db");
    daemon.discovered(any, Ok(vec![facts(&db)]));
    daemon.discovered(monitor, Ok(vec![VmFacts { migrating: true, ..facts(&db) }]));
    assert_eq!(daemon.vms[&db].backend, any);
    daemon.discovered(monitor, Ok(vec![facts(&db)]));
    assert_eq!(daemon.vms[&db].backend, monitor);
}

#[tokio::test]
async fn an_operators_word_outlasts_the_mistake_by_which_a_vm_was_exempt_already() {
    let folder = tempfile::tempdir().unwrap();
    let (mut daemon, _, any) = daemon(&folder).await;
    let web = VmName::from("web");
    let wrong = VmFacts { metadata: Err("its namespace is another".to_owned()), ..facts(&web) };
    let is_exempt = |daemon: &Daemon| daemon.planner.vm(&web).unwrap().settings.exempt;
    daemon.discovered(any, Ok(vec![wrong]));
    assert!(is_exempt(&daemon));
    let who = Operator { uid: 0, gid: 0, pid: None, name: "alice".to_owned() };
    let (reply, answer) = oneshot::channel();
    daemon.change(&who, Change::Exempt { vm: web.clone(), on: true }, reply);
    let done = answer.await.unwrap().unwrap();
    assert_eq!(done.done, "`web` is exempt: it gets all its memory and keeps it");
    assert_eq!(
        done.notes,
        ["it was so by the <metadata> of its domain, which is wrong, and stays so when that is corrected"]
    );
    daemon.discovered(any, Ok(vec![facts(&web)]));
    assert!(is_exempt(&daemon));
    let (reply, answer) = oneshot::channel();
    daemon.change(&who, Change::Exempt { vm: web.clone(), on: false }, reply);
    assert_eq!(answer.await.unwrap().unwrap().done, "`web` is no longer exempt");
    assert!(!is_exempt(&daemon));
}
