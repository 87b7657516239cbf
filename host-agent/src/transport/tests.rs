use super::*;
use crate::config::{Address, Config};
use ballast_protocol::decode;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, timeout};

const LONG: Duration = Duration::from_secs(10);

fn config(directory: &TempDir, vms: &[&str]) -> Config {
    let vms: String = vms
        .iter()
        .map(|vm| {
            let path = directory.path().join("sub").join(vm);
            format!("[[vm]]\nname = \"{vm}\"\nqmp = \"/{vm}.qmp\"\nvsock = \"{}\"\n", path.display())
        })
        .collect();
    Config::parse(Path::new("b.toml"), &vms).unwrap()
}

fn socket(directory: &TempDir, vm: &str) -> PathBuf {
    directory.path().join("sub").join(format!("{vm}_9150"))
}

/// Listens for all VMs of a configuration, or for none.
async fn bind(config: &Config) -> Result<Listener, Error> {
    let mut listener = Listener::bind(&config.daemon)?;
    for vm in &config.vms {
        if let Some(Address::Hybrid(path)) = &vm.agent {
            listener.add(vm.name.clone(), path.clone()).await?;
        }
    }
    Ok(listener)
}

#[tokio::test]
async fn the_path_names_the_vm() {
    let directory = tempfile::tempdir().unwrap();
    let mut listener = bind(&config(&directory, &["a", "b"])).await.unwrap();
    for vm in ["b", "a"] {
        let mut guest = UnixStream::connect(socket(&directory, vm)).await.unwrap();
        guest.write_all(b"hello").await.unwrap();
        let (peer, mut stream) = timeout(LONG, listener.accept()).await.unwrap();
        assert_eq!(peer, Peer::Vm(VmName::from(vm)));
        let mut heard = [0; 5];
        stream.read_exact(&mut heard).await.unwrap();
        stream.write_all(b"world").await.unwrap();
        guest.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"world");
    }
}

#[tokio::test]
async fn the_socket_is_its_owners_alone_and_goes_with_the_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let listener = bind(&config(&directory, &["a"])).await.unwrap();
    let metadata = std::fs::metadata(socket(&directory, "a")).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
    assert_eq!(std::fs::metadata(directory.path().join("sub")).unwrap().permissions().mode() & 0o7777, 0o755);
    drop(listener);
    assert!(!socket(&directory, "a").exists());
}

#[tokio::test]
async fn the_socket_belongs_to_whoever_stands_for_the_guest() {
    if !rustix::process::geteuid().is_root() {
        return; // Only root can give files away, and only root needs to.
    }
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("sub")).unwrap();
    let vsock = directory.path().join("sub/a");
    let _daemon = UnixListener::bind(&vsock).unwrap();
    std::os::unix::fs::chown(&vsock, Some(65534), Some(65534)).unwrap();
    let _listener = bind(&config(&directory, &["a"])).await.unwrap();
    let metadata = std::fs::metadata(socket(&directory, "a")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (65534, 65534));
}

#[tokio::test]
async fn a_second_daemon_on_the_same_vm_is_refused_and_the_first_lives() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = bind(&config(&directory, &["a"])).await.unwrap();
    let error = bind(&config(&directory, &["b", "a"])).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "VM `a`: somebody listens on {} already; another ballast-host runs on the same VMs, stop it first",
            socket(&directory, "a").display()
        )
    );
    assert!(!socket(&directory, "b").exists(), "what the second made is gone again");
    // The probe itself arrives as a connection that says nothing.
    timeout(LONG, first.accept()).await.unwrap();
    let _guest = UnixStream::connect(socket(&directory, "a")).await.unwrap();
    assert_eq!(timeout(LONG, first.accept()).await.unwrap().0, Peer::Vm(VmName::from("a")));
}

#[tokio::test]
async fn daemons_that_start_at_once_do_not_both_win() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(&directory, &["a"]);
    let attempts: Vec<_> = (0..8)
        .map(|_| {
            let config = config.clone();
            tokio::spawn(async move { bind(&config).await })
        })
        .collect();
    let mut winners = Vec::new();
    for attempt in attempts {
        match attempt.await.unwrap() {
            Ok(listener) => winners.push(listener),
            Err(e) => assert!(matches!(e, Error::Occupied { .. }), "{e}"),
        }
    }
    assert_eq!(winners.len(), 1);
}

#[tokio::test]
async fn the_socket_of_a_dead_daemon_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("sub")).unwrap();
    // The standard library leaves the file behind, as a killed daemon does.
    drop(std::os::unix::net::UnixListener::bind(socket(&directory, "a")).unwrap());
    assert!(std::fs::symlink_metadata(socket(&directory, "a")).unwrap().file_type().is_socket());
    let mut listener = bind(&config(&directory, &["a"])).await.unwrap();
    let _guest = UnixStream::connect(socket(&directory, "a")).await.unwrap();
    timeout(LONG, listener.accept()).await.unwrap();
}

#[tokio::test]
async fn a_file_of_somebody_elses_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("sub")).unwrap();
    std::fs::write(socket(&directory, "a"), "precious").unwrap();
    let error = bind(&config(&directory, &["a"])).await.unwrap_err();
    assert!(matches!(error, Error::InTheWay { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(socket(&directory, "a")).unwrap(), "precious");
}

#[tokio::test]
async fn vms_come_and_go() {
    let directory = tempfile::tempdir().unwrap();
    let mut listener = bind(&config(&directory, &["a"])).await.unwrap();
    let (a, b) = (VmName::from("a"), VmName::from("b"));
    listener.add(b.clone(), directory.path().join("sub/b")).await.unwrap();
    let _guest = UnixStream::connect(socket(&directory, "b")).await.unwrap();
    assert_eq!(timeout(LONG, listener.accept()).await.unwrap().0, Peer::Vm(b));
    listener.remove(&a);
    assert!(!socket(&directory, "a").exists());
    listener.add(a, directory.path().join("sub/a")).await.unwrap();
    assert!(socket(&directory, "a").exists());
}

#[tokio::test]
async fn a_flood_of_one_vm_is_slowed_down_and_no_other_vm_notices() {
    let directory = tempfile::tempdir().unwrap();
    let mut listener = bind(&config(&directory, &["flood", "quiet"])).await.unwrap();
    let flood = socket(&directory, "flood");
    let flood = tokio::spawn(async move {
        loop {
            // Refused ones too: what counts is how many are let in.
            drop(UnixStream::connect(&flood).await);
            tokio::task::yield_now().await;
        }
    });
    let begin = Instant::now();
    let mut floods = 0;
    while begin.elapsed() < Duration::from_secs(1) {
        if let Ok((peer, _)) = timeout(Duration::from_millis(50), listener.accept()).await {
            assert_eq!(peer, Peer::Vm(VmName::from("flood")));
            floods += 1;
        }
    }
    assert!((8..=14).contains(&floods), "8 at once and 4 a second: {floods}");
    let begin = Instant::now();
    let _guest = UnixStream::connect(socket(&directory, "quiet")).await.unwrap();
    loop {
        let (peer, _) = timeout(LONG, listener.accept()).await.unwrap();
        if peer == Peer::Vm(VmName::from("quiet")) {
            break;
        }
    }
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    flood.abort();
}

#[test]
fn only_the_guests_root_is_let_in_on_af_vsock() {
    assert_eq!(admit(42, 1023), Ok(Peer::Cid(42)));
    assert_eq!(admit(42, 1024), Err(Refusal::Unprivileged));
    assert_eq!(admit(42, u32::MAX), Err(Refusal::Unprivileged));
}

#[tokio::test]
async fn a_refused_peer_hears_why_even_when_it_talks_meanwhile() {
    let directory = tempfile::tempdir().unwrap();
    let mut listener = bind(&config(&directory, &["a"])).await.unwrap();
    let mut guest = UnixStream::connect(socket(&directory, "a")).await.unwrap();
    guest.write_all(&[7; 1000]).await.unwrap();
    let (_, stream) = timeout(LONG, listener.accept()).await.unwrap();
    listener.refuser().refuse(stream, Refusal::UnknownVm);
    let mut heard = Vec::new();
    timeout(LONG, guest.read_to_end(&mut heard)).await.unwrap().unwrap();
    assert_eq!(decode::<HostMessage>(&heard[2..]), Ok(HostMessage::Refused(Refusal::UnknownVm)));
}

#[tokio::test]
async fn peers_that_never_hang_up_are_bounded_in_time_and_number() {
    let refuser = Refuser { slots: Arc::new(Semaphore::new(FAREWELLS)) };
    let begin = Instant::now();
    let mut guests = Vec::new();
    for _ in 0..FAREWELLS + 5 {
        let (guest, host) = UnixStream::pair().unwrap();
        refuser.refuse(Stream::Unix(host), Refusal::Unprivileged);
        guests.push(guest);
    }
    let mut told = 0;
    for mut guest in guests {
        // Reads to the end without ever closing its own side.
        let mut heard = Vec::new();
        timeout(LONG, guest.read_to_end(&mut heard)).await.unwrap().unwrap();
        told += usize::from(!heard.is_empty());
        std::mem::forget(guest);
    }
    assert_eq!(told, FAREWELLS);
    tokio::time::sleep(FAREWELL * 2).await;
    assert_eq!(refuser.slots.available_permits(), FAREWELLS, "after {:?}", begin.elapsed());
}
