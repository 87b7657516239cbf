//! The metrics, the dashboard and the alerts against a real Prometheus.

use crate::common::{Dependant, output, wait_for};
use crate::{Answer, HOSTILE, Host, burst, directory, figure, get, three, tool};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const MEND: &str = "`make setup` fetches it, or: apt-get install prometheus";
const RULES: &str = include_str!("../../packaging/prometheus/ballast.rules.yml");
const DASHBOARD: &str = include_str!("../../packaging/grafana/ballast.json");

fn packaged(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/prometheus").join(file)
}

/// All expressions of the dashboard, its variables filled in.
fn expressions() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|p| p["targets"].as_array().cloned().unwrap_or_default());
    let all = targets.map(|t| t["expr"].as_str().unwrap().to_owned());
    all.map(|e| e.replace("$instance", ".*").replace("$vm", ".*").replace("$__rate_interval", "1m")).collect()
}

/// The metrics that a text names, histograms by their family.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|w| w.starts_with("ballast_") && *w != "ballast_");
    ours.map(|w| w.strip_suffix("_bucket").unwrap_or(w).to_owned()).collect()
}

#[test]
fn dashboard_and_alerts_name_nothing_that_is_not_there() {
    let directory = directory();
    let [hostile, web, bare] = three(directory.path());
    let host = Host::start(directory.path(), &[&hostile, &web, &bare], "[host]\nbudget = \"4GiB\"");
    burst(&host, &web);
    // A demand beyond the maximum is not met in full.
    web.want(ballast_protocol::Bytes::mib(2000));
    let text = host.scrape_until("a shortfall", |t| {
        t.lines().any(|l| l.starts_with("ballast_vm_demand_shortfalls_total{vm=\"web\"") && !l.ends_with(" 0"))
    });
    let there: BTreeSet<String> =
        text.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next().map(str::to_owned)).collect();
    let mut wanted = named(&expressions().join("\n"));
    wanted.extend(named(&serde_json::from_str::<Value>(DASHBOARD).unwrap()["templating"].to_string()));
    let rules: String = RULES.lines().filter(|l| !l.trim_start().starts_with('#')).collect::<Vec<_>>().join("\n");
    wanted.extend(named(&rules));
    assert!(wanted.len() > 30, "{wanted:?}");
    // Only a VM with an iperf3 server has a service level.
    let measured = "ballast_vm_service_level_ratio".to_owned();
    let missing: Vec<&String> = wanted.difference(&there).filter(|n| **n != measured).collect();
    assert!(missing.is_empty(), "not in a scrape: {missing:?}\n{text}");
    assert!(wanted.contains(&measured));
}

#[test]
fn promtool_has_nothing_to_say() {
    let Some(promtool) = tool("promtool", MEND) else { return };
    for (check, file) in [(["check", "rules"], "ballast.rules.yml"), (["test", "rules"], "ballast.rules.test.yml")] {
        let said = output(Command::new(&promtool).args(check).arg(packaged(file)));
        println!("{}", String::from_utf8_lossy(&said));
    }
    let directory = directory();
    let [hostile, web, bare] = three(directory.path());
    let host = Host::start(directory.path(), &[&hostile, &web, &bare], "[host]\nbudget = \"4GiB\"");
    burst(&host, &web);
    let mut check = Command::new(&promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    check.stdin.take().unwrap().write_all(host.get("/metrics").body.as_bytes()).unwrap();
    let said = check.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success() && text.is_empty(), "{text}");
}

#[test]
fn a_real_prometheus_scrapes_it() {
    let Some(prometheus) = tool("prometheus", MEND) else { return };
    let directory = directory();
    let [hostile, web, bare] = three(directory.path());
    let host = Host::start(directory.path(), &[&hostile, &web, &bare], "[host]\nbudget = \"4GiB\"");
    burst(&host, &web);

    let config = directory.path().join("prometheus.yml");
    let text = format!(
        "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: [{}]\nscrape_configs:\n  - job_name: ballast\n    \
         static_configs: [{{ targets: [\"{}\"] }}]\n",
        packaged("ballast.rules.yml").display(),
        host.address
    );
    std::fs::write(&config, text).unwrap();
    // Free a moment ago; nobody else on this machine takes ports in order.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let _prometheus = Dependant::spawn(
        Command::new(prometheus)
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("tsdb").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=warn"),
    );
    let scraped = wait_for("a scrape", || {
        std::net::TcpStream::connect(address).ok()?;
        let found = ask(address, "ballast_vm_memory_actual_bytes")?;
        (found.as_array()?.len() == 3).then_some(found)
    });
    let names: BTreeSet<&str> =
        scraped.as_array().unwrap().iter().map(|s| s["metric"]["vm"].as_str().unwrap()).collect();
    assert_eq!(names, BTreeSet::from([HOSTILE, "web", "bare"]));
    for expression in expressions() {
        assert!(ask(address, &expression).is_some(), "{expression}");
    }
    let median = "histogram_quantile(0.5, sum by (le) (ballast_demand_order_seconds_bucket))";
    let found = wait_for("a latency", || ask(address, median).filter(|f| f[0]["value"][1] != Value::Null));
    let median: f64 = found[0]["value"][1].as_str().unwrap().parse().unwrap();
    assert!(median > 0.0 && median < 1.0, "{median}");
    println!("median of demand received -> order: {median} s, by Prometheus");

    let rules: Value = serde_json::from_str(&http(address, "/api/v1/rules").body).unwrap();
    let rules = rules["data"]["groups"][0]["rules"].as_array().unwrap().clone();
    assert!(rules.len() >= 6);
    for rule in &rules {
        assert_ne!(rule["health"], "err", "{rule}");
    }
    // The scraped counter is the one that the daemon shows.
    let text = host.get("/metrics").body;
    assert!(figure(&text, "ballast_vm_moved_bytes_total{vm=\"web\",direction=\"take\"}") > 0.0);
}

fn http(address: SocketAddr, path: &str) -> Answer {
    get(address, path, &address.to_string())
}

/// The result of an instant query; `None`: Prometheus does not understand it.
fn ask(address: SocketAddr, query: &str) -> Option<Value> {
    let answer = http(address, &format!("/api/v1/query?query={}", utf8_percent_encode(query, NON_ALPHANUMERIC)));
    let found: Value = serde_json::from_str(&answer.body).ok()?;
    (found["status"] == "success").then(|| found["data"]["result"].clone())
}
