use super::*;
use ballast_protocol::{Capabilities, Demand, Limited, Source, VERSION};

fn hello() -> Hello {
    Hello {
        oldest: VERSION,
        newest: VERSION,
        agent: Limited::cut("a test"),
        kernel: Limited::cut("none"),
        boot_id: [7; 16],
        now: Micros::secs(1),
        capabilities: Capabilities::default(),
    }
}

fn demand(id: u64) -> GuestMessage {
    GuestMessage::Demand(Demand {
        id,
        source: Source::Slack,
        size: Bytes::mib(1),
        sign: Micros::secs(1),
        sent: Micros::secs(1),
        within: Micros::millis(100),
        free: Bytes::mib(1),
        ballooned: None,
    })
}

#[tokio::test]
async fn demands_in_hand_when_it_is_told_to_stop_are_answered() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().display();
    let text = format!(
        "[metrics]\nenabled = false\n[daemon]\nvsock = false\nstate-dir = \"{here}/state\"\ncontrol-socket = \"{here}/control\"\n\
         [journal]\npath = \"{here}/journal\"\n[[vm]]\nname = \"a\"\nqmp = \"{here}/a.qmp\"\nvsock = \"{here}/a.vsock\"\n"
    );
    let config = Config::parse(Path::new("b.toml"), &text).unwrap();
    let daemon = Daemon::start(config).await.unwrap();
    let (vm, asked) = (VmName::from("a"), 100);
    let (outgoing, mut told) = mpsc::channel(session::OUTGOING);
    let (answer, admitted) = oneshot::channel();
    let opening = Opening { vm: vm.clone(), hello: hello(), outgoing, answer };
    daemon.events.try_send(Event::SessionOpens(opening)).unwrap();
    for id in 0..asked {
        let received = daemon.clock.now();
        daemon.events.try_send(Event::Guest { vm: vm.clone(), received, message: demand(id) }).unwrap();
    }
    daemon.run(std::future::ready(())).await;
    assert!(admitted.await.unwrap().is_ok());
    let mut answered = Vec::new();
    while let Some(message) = told.recv().await {
        if let HostMessage::Answer(answer) = message {
            answered.push(answer.id);
        }
    }
    assert_eq!(answered, (0..asked).collect::<Vec<_>>());
}
