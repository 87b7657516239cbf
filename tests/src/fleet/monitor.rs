//! A QEMU monitor that has no QEMU behind it: the commands that the host agent uses, for one VM.

use super::World;
use super::tally::Promise;
use super::vm::Vm;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

/// How long QEMU takes for an order: 0.4 ms measured, in steps of the runtime's timer. Whoever sends a second order
/// meanwhile has two in flight.
const THINKS: Duration = Duration::from_millis(1);
/// As `-device virtio-balloon-pci,id=balloon0` appears in QEMU's object tree.
const BALLOON: &str = "balloon0";

/// Serves one client at a time, as QEMU does.
pub(super) async fn serve(listener: UnixListener, vm: Rc<RefCell<Vm>>, world: Rc<World>) {
    while let Ok((stream, _)) = listener.accept().await {
        // A client that goes is no failure: daemons are restarted.
        let _ = client(stream, &vm, &world).await;
    }
}

async fn client(stream: UnixStream, vm: &RefCell<Vm>, world: &World) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::with_capacity(512, reader);
    writer.write_all(b"{\"QMP\":{\"version\":{\"qemu\":{\"major\":7,\"minor\":2,\"micro\":0}}}}\r\n").await?;
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let command: Value = serde_json::from_slice(&line)?;
        let name = command["execute"].as_str().unwrap_or_default();
        world.tally().commands += 1;
        let answer = execute(name, &command["arguments"], vm, world);
        if name == "balloon"
            && let Ok(more) = timeout(THINKS, reader.fill_buf()).await
            && more?.windows(9).any(|w| w == b"\"balloon\"")
        {
            let vm = vm.borrow();
            world.tally().breaks(Promise::TwoOrders, &vm.name, "a second order before the first was taken");
        }
        let mut reply = match answer {
            Ok(value) => json!({ "return": value, "id": command["id"] }),
            Err((class, text)) => json!({ "error": { "class": class, "desc": text }, "id": command["id"] }),
        }
        .to_string();
        reply.push_str("\r\n");
        writer.write_all(reply.as_bytes()).await?;
    }
}

fn execute(
    name: &str,
    arguments: &Value,
    vm: &RefCell<Vm>,
    world: &World,
) -> Result<Value, (&'static str, &'static str)> {
    let mut vm = vm.borrow_mut();
    let now = world.now();
    match name {
        "qmp_capabilities" | "qom-set" => Ok(json!({})),
        "query-status" => Ok(json!({ "running": true, "singlestep": false, "status": "running" })),
        "query-memory-size-summary" => Ok(json!({ "base-memory": vm.guest.max.0, "plugged-memory": 0 })),
        "query-uuid" => Ok(json!({ "UUID": "00000000-0000-0000-0000-000000000000" })),
        "query-balloon" => {
            vm.guest.advance(now);
            Ok(json!({ "actual": vm.guest.kept().0 }))
        }
        "balloon" => {
            let keep = arguments["value"].as_u64().ok_or(("GenericError", "value: integer expected"))?;
            vm.ordered(now, ballast_protocol::Bytes(keep), &mut world.tally());
            Ok(json!({}))
        }
        "qom-list" if arguments["path"] == "/machine/peripheral" => {
            Ok(json!([{ "name": BALLOON, "type": "child<virtio-balloon-pci>" }, { "name": "type", "type": "string" }]))
        }
        "qom-list" => Ok(json!([{ "name": "type", "type": "string" }])),
        "qom-get" => match arguments["property"].as_str() {
            Some("deflate-on-oom") => Ok(json!(true)),
            Some("free-page-reporting") => Ok(json!(false)),
            Some("guest-stats-polling-interval") => Ok(json!(1)),
            Some("guest-stats") => Ok(json!({ "stats": {}, "last-update": 0 })),
            _ => Err(("GenericError", "no such property")),
        },
        _ => Err(("CommandNotFound", "the simulated monitor does not have this command")),
    }
}
