//! The status page and its events.

use crate::common::fake::FakeVm;
use crate::common::{output, wait_for};

use crate::{HOSTILE, Host, burst, connect, directory, get, three, tool};
use ballast_protocol::Bytes;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::time::Duration;

#[test]
fn only_this_machine_s_names_are_answered() {
    let directory = directory();
    let [hostile, ..] = three(directory.path());
    let host = Host::start(directory.path(), &[&hostile], "names = [\"Host1.example\"]");
    let port = host.address.port();
    for path in ["/", "/metrics"] {
        for name in ["localhost", "127.0.0.1", "[::1]", "host1.example"] {
            assert_eq!(get(host.address, path, &format!("{name}:{port}")).status, 200, "{name}");
        }
        for name in [format!("rebound.example:{port}"), "localhost.example".into(), String::new()] {
            let answer = get(host.address, path, &name);
            assert_eq!(answer.status, 421, "{name}");
            assert!(
                answer.body.contains("`names` in [metrics]") && !answer.body.contains("ballast_"),
                "{}",
                answer.body
            );
        }
    }
    assert_eq!(get(host.address, "/events", "rebound.example").status, 421);
    assert_eq!(host.get("/anything").status, 404);
}

#[test]
fn the_page_forbids_whatever_is_not_its_own() {
    let directory = directory();
    let [hostile, ..] = three(directory.path());
    let host = Host::start(directory.path(), &[&hostile], "");
    let nonce = |answer: &crate::Answer| {
        let policy = answer.head.lines().find_map(|l| l.strip_prefix("content-security-policy: ")).unwrap();
        assert!(policy.starts_with("default-src 'none';") && policy.contains("connect-src 'self'"), "{policy}");
        assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"), "{policy}");
        policy.split("script-src 'nonce-").nth(1).unwrap().split('\'').next().unwrap().to_owned()
    };
    let (one, two) = (host.get("/"), host.get("/"));
    assert!(one.body.contains(&format!("<script nonce=\"{}\">", nonce(&one))), "{}", one.head);
    assert_ne!(nonce(&one), nonce(&two), "drawn anew");
    for line in ["cache-control: no-store", "x-content-type-options: nosniff", "referrer-policy: no-referrer"] {
        assert!(one.head.contains(line), "{}", one.head);
    }
    assert!(!one.head.contains("access-control-"), "{}", one.head);
}

#[test]
fn events_are_snapshots_and_say_what_happened_before() {
    let directory = directory();
    let [hostile, web, bare] = three(directory.path());
    let host = Host::start(directory.path(), &[&hostile, &web, &bare], "[host]\nbudget = \"4GiB\"");
    burst(&host, &web);
    let stream = connect(host.address, "/events", "localhost");
    let mut lines = BufReader::new(stream).lines().map(|l| l.unwrap());
    assert!(lines.any(|l| l.eq_ignore_ascii_case("content-type: text/event-stream")));
    let mut next = || -> Value {
        let line = lines.find_map(|l| Some(l.strip_prefix("data: ")?.to_owned())).unwrap();
        serde_json::from_str(&line).unwrap()
    };
    let (first, second, third) = (next(), next(), next());
    let names = |snapshot: &Value| -> Vec<String> {
        snapshot["vms"].as_array().unwrap().iter().map(|vm| vm["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&first), [HOSTILE, "bare", "web"]);
    assert_eq!(first["host"]["total"], 4_u64 << 30);
    // The burst was before anybody listened.
    let marks = first["marks"].as_array().unwrap();
    let of = |kind: &str| marks.iter().any(|m| m["vm"] == "web" && m["kind"] == kind);
    assert!(of("take") && of("give") && of("demand"), "{marks:?}");
    let past = &first["past"];
    assert!(!past["times"].as_array().unwrap().is_empty() && past["vms"]["web"][0][2].is_u64(), "{past}");
    assert!(second["past"].is_null(), "once");
    let demand = marks.iter().find(|m| m["kind"] == "demand").unwrap();
    assert!(demand["text"].as_str().unwrap().ends_with(", granted"), "{demand}");
    let apart = third["at"].as_u64().unwrap() - second["at"].as_u64().unwrap();
    assert!((500_000..20_000_000).contains(&apart), "{apart}");
}

#[test]
fn what_waits_for_somebody_to_mend_it_is_in_the_figures_and_on_the_page() {
    let directory = directory();
    let [hostile, web, _] = three(directory.path());
    // Somebody else sits where this VM's agent would call.
    let _other = UnixListener::bind(directory.path().join("b.v_9150")).unwrap();
    let host = Host::start(directory.path(), &[&hostile, &web], "");
    let scraped = host.scrape_until("the problem", |text| text.contains("\nballast_problems 1\n"));
    assert!(scraped.contains("\nballast_vms "), "{scraped}");
    let stream = connect(host.address, "/events", "localhost");
    let line =
        BufReader::new(stream).lines().find_map(|l| Some(l.unwrap().strip_prefix("data: ")?.to_owned())).unwrap();
    let snapshot: Value = serde_json::from_str(&line).unwrap();
    let problem = snapshot["problems"][0].as_str().unwrap();
    assert!(problem.contains("VM `web`") && problem.contains("b.v_9150"), "{problem}");
}

#[test]
fn the_page_in_a_real_browser_makes_text_of_hostile_names() {
    let Some(chromium) = tool("chromium", "apt-get install chromium (100 MB, so `make setup` does not)") else {
        return;
    };
    let directory = directory();
    let [hostile, web, bare] = three(directory.path());
    let _other = UnixListener::bind(directory.path().join("c.v_9150")).unwrap();
    let host = Host::start(directory.path(), &[&hostile, &web, &bare], "[host]\nbudget = \"4GiB\"");
    burst(&host, &web);
    // A browser on a busy machine may be late with its first connection.
    let page = wait_for("the page", || {
        let profile = directory.path().join("chromium");
        let page = output(
            // It waits for a page that never ends loading: twice bounded.
            Command::new("timeout")
                .arg("60")
                .arg(&chromium)
                .args(["--headless", "--no-sandbox", "--disable-gpu", "--timeout=10000", "--dump-dom"])
                .arg(format!("--user-data-dir={}", profile.display()))
                .arg(format!("http://{}/", host.address)),
        );
        let page = String::from_utf8(page).unwrap();
        let is_live = page.contains(">live</span>");
        if !is_live {
            std::thread::sleep(Duration::from_secs(1));
        }
        is_live.then_some(page)
    });
    assert!(page.contains("<th scope=\"row\">&lt;img src=x onerror="), "{page}");
    assert!(page.contains("<title>Ballast</title>") && !page.contains("<img"), "{page}");
    for name in ["web", "bare"] {
        assert!(page.contains(&format!("<th scope=\"row\">{name}</th>")), "{name}");
    }
    let banner = page.split("class=\"banner\"").nth(1).and_then(|b| b.split("</p>").next()).unwrap();
    assert!(banner.contains("VM `bare`") && banner.contains("c.v_9150"), "{banner}");
    assert_eq!(page.matches("<figure>").count(), 4, "one for each VM and one for all");
    assert!(page.contains("class=\"kept\" d=\"M") && page.contains("class=\"give\" d=\"M"), "lines and signs");
}

/// `cargo test -p ballast-host --test metrics -- --ignored --nocapture look`
#[test]
#[ignore = "for people who work on the page: serves it for five minutes, with VMs that do something"]
fn a_page_to_look_at() {
    let directory = directory();
    let mut vms = Vec::from(three(directory.path()));
    for n in 1..=4 {
        let size = Bytes::mib(512 * (1 + n % 3));
        vms.push(FakeVm::start(directory.path(), &format!("w{n}"), &format!("worker-{n}"), size, true));
    }
    let host = Host::start(directory.path(), &vms.iter().collect::<Vec<_>>(), "[host]\nbudget = \"3GiB\"");
    println!("http://{}/", host.address);
    for second in 0..300_usize {
        let vm = &vms[second / 7 % vms.len()];
        let max = [512, 1024, 256, 1024, 1536, 512, 1024][second / 7 % vms.len()];
        match second % 7 {
            1 => vm.want(Bytes::mib(max * 7 / 10)),
            5 => vm.want(Bytes::mib(max / 8)),
            _ => {}
        }
        if second % 61 == 60 {
            vms[1].let_go(Bytes::mib(64));
            vms[3].kill_one();
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}
