//! Clients that hang, requests that make no sense.

use crate::common::{Dependant, wait_for};
use crate::host::{Host, answer, folder, settled};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Descriptors that a process has open.
fn descriptors(process: &Dependant) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", process.pid().as_raw_nonzero())).unwrap().count()
}

#[test]
fn clients_that_hang_hold_up_nobody_and_leave_nothing_behind() {
    let directory = folder();
    let web = settled(directory.path(), "web");
    let host = Host::start(directory.path(), "", &web.table(""));
    host.wait_for_vms(&["web"]);
    let process = host.process.as_ref().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let before = descriptors(process);

    // More than may be at a time: silent, half a head, half a body, never reading. Then one that works.
    let mut hanging = Vec::new();
    for i in 0..200 {
        let mut stream = UnixStream::connect(host.socket()).unwrap();
        let says: &[u8] = match i % 4 {
            0 => b"",
            1 => b"GET /v1/status HTTP/1.1\r\nHo",
            2 => b"PUT /v1/vms/web/hold HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"size\": 1",
            _ => b"GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n",
        };
        // One that was hung up on already cannot be written to.
        let _ = stream.write_all(says);
        hanging.push(stream);
    }
    let begun = Instant::now();
    assert_eq!(host.status()["vms"][0]["name"], "web");
    host.run(&["hold", "web", "512M", "--reason", "while others hang"]).unwrap();
    // Of their ten seconds none was waited for.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(descriptors(process) < before + 100, "the number of connections has no bound");

    // They are hung up on although they themselves stay, and no descriptor is left.
    wait_for("the end of those that hang", || (descriptors(process) <= before).then_some(()));
    for mut stream in hanging {
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let mut said = Vec::new();
        // Reset or closed, not waiting any more.
        if let Err(error) = stream.read_to_end(&mut said) {
            assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "still connected");
        }
    }
    assert_eq!(host.vm("web").unwrap()["hold"]["reason"], "while others hang");
}

#[test]
fn a_request_that_makes_no_sense_gets_a_clear_answer() {
    let directory = folder();
    let web = settled(directory.path(), "web");
    let host = Host::start(directory.path(), "", &web.table(""));
    host.wait_for_vms(&["web"]);
    let hold = "/v1/vms/web/hold";
    let long = format!("{{\"size\": 1, \"reason\": \"{}\"}}", "x".repeat(20_000));
    for (method, path, body, status, complaint) in [
        ("GET", "/v2/status", "", 404, "there is nothing at /v2/status; GET /v1/openapi.json lists what there is"),
        ("POST", "/v1/status", "", 405, "POST is not for /v1/status; GET /v1/openapi.json lists what there is"),
        ("PUT", hold, "", 400, "not what is wanted here: EOF"),
        ("PUT", hold, "{\"size\": 536870912}", 400, "missing field `reason`"),
        ("PUT", hold, "{\"size\": -1, \"reason\": \"x\"}", 400, "invalid value: integer `-1`"),
        ("PUT", hold, "{\"size\": 1, \"reason\": \"x\", \"until\": 1}", 400, "unknown field `until`"),
        ("PUT", hold, &long, 413, "the request's body is longer than 16384 bytes"),
        ("PUT", hold, "{\"size\": 1048576, \"reason\": \"a\\nb\"}", 400, "a reason has 1 to 200 printable characters"),
        ("DELETE", "/v1/vms/web/hold?force=yes", "", 400, "`?force=yes` is not known here; ?force=true is"),
        ("DELETE", hold, "", 409, "nobody holds `web`"),
        ("DELETE", "/v1/reservations/a%0Ab", "", 400, "a name has 1 to 128 printable characters"),
        ("PUT", "/v1/law", "{\"law\": \"mine\"}", 400, "unknown variant `mine`"),
        ("PUT", "/v1/dry-run", "{\"on\": \"yes\"}", 400, "expected a boolean"),
        ("GET", "/v1/vms/nobody", "", 404, "no VM named `nobody` is known"),
    ] {
        let (got, body) = host.ask(method, path, body);
        assert_eq!(got, status, "{method} {path}: {body}");
        let error = body["error"].as_str().unwrap();
        assert!(error.contains(complaint), "{method} {path}: {error}");
    }
    // A name that has to be escaped, and the document itself.
    assert_eq!(
        host.ask("GET", "/v1/vms/a%20b%2Fc", "").1["error"],
        "no VM named `a b/c` is known; `ballast-host status` lists them"
    );
    assert_eq!(&host.ask("GET", "/v1/openapi.json", "").1, host.schemas.document());
    // No HTTP at all.
    let mut stream = UnixStream::connect(host.socket()).unwrap();
    stream.write_all(b"\x16\x03\x01 what is this?\r\n\r\n").unwrap();
    assert_eq!(answer(&mut stream).0, 400);
}
