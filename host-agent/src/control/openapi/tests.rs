//! `openapi.json` against the code: route by route, schema by schema, both ways.

use super::DOCUMENT;
use crate::control::serve::routes;
use crate::control::{
    Decision, Done, DryRunRequest, Explained, HoldRequest, HypervisorStatus, LawRequest, Problem, ReclaimRequest,
    Reclaimed, Reloaded, ReserveRequest, Status, Waiting,
};
use crate::prober::ProbeStatus;
use ballast_planner::{
    Class, CurvePoint, Facts, ForecastStatus, Hold, HostMemory, HostStatus, Input, LawName, Mode, Planner, Ratio,
    ReservationStatus, ServiceMode, ServiceStatus, Taking, VmName, VmSettings, VmStatus,
};
use ballast_protocol::{Bytes, Micros};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeSet;

#[path = "../../../tests/common/schema.rs"]
mod schema;
use schema::Schemas;

const LAWS: [LawName; 8] = [
    LawName::Ballast,
    LawName::Threshold,
    LawName::Mom,
    LawName::Proxmox,
    LawName::Headroom,
    LawName::Drs,
    LawName::Fixed,
    LawName::Static,
];

fn keys(of: &Value) -> BTreeSet<String> {
    of.as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect()
}

fn value<T: Serialize>(of: &T) -> Value {
    serde_json::to_value(of).unwrap()
}

#[test]
fn every_route_is_described_and_every_description_is_a_route() {
    let served: BTreeSet<(String, String)> =
        routes().into_iter().map(|(method, path, _)| (method.to_string().to_lowercase(), path.to_owned())).collect();
    let schemas = Schemas::of(DOCUMENT);
    let mut described = BTreeSet::new();
    let mut names = BTreeSet::new();
    for (path, item) in schemas.document()["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap().iter().filter(|(key, _)| *key != "parameters") {
            described.insert((method.clone(), path.clone()));
            assert!(names.insert(operation["operationId"].as_str().unwrap()), "{operation}");
            let everywhere = item.get("parameters").and_then(Value::as_array);
            let here = operation.get("parameters").and_then(Value::as_array);
            let parameters: Vec<&Value> = everywhere.into_iter().chain(here).flatten().collect();
            let has = |name: &str| parameters.iter().any(|p| p["$ref"] == format!("#/components/parameters/{name}"));
            assert_eq!(has("Name"), path.contains("{name}"), "{method} {path}");
            assert_eq!(has("Operator"), method != "get", "{method} {path}: who asks matters where something changes");
        }
    }
    assert_eq!(served, described);
}

#[test]
fn every_reference_leads_somewhere() {
    fn walk(at: &Value, document: &Value, seen: &mut usize) {
        match at {
            Value::Object(fields) => {
                if let Some(Value::String(to)) = fields.get("$ref") {
                    assert!(document.pointer(&to[1..]).is_some(), "{to}");
                    *seen += 1;
                }
                fields.values().for_each(|v| walk(v, document, seen));
            }
            Value::Array(all) => all.iter().for_each(|v| walk(v, document, seen)),
            _ => {}
        }
    }
    let schemas = Schemas::of(DOCUMENT);
    let mut seen = 0;
    walk(schemas.document(), schemas.document(), &mut seen);
    assert!(seen > 100, "{seen}");
}

fn vm_status() -> VmStatus {
    let mut planner = Planner::new();
    let vm = VmName::from("web");
    let size = Bytes::mib(512);
    let facts = Facts { max: size, actual: size, running: true, balloon: true, deflate_on_oom: Some(true) };
    planner.handle(Micros::ZERO, Input::Vm { vm: vm.clone(), facts, settings: VmSettings::default() });
    VmStatus::of(&vm, planner.vm(&vm).unwrap(), Micros::secs(1))
}

fn forecast() -> ForecastStatus {
    ForecastStatus {
        mode: Mode::On,
        used: true,
        standing: "good".to_owned(),
        model: Some("mlp".to_owned()),
        age: Some(Micros::secs(1)),
        budget: Ratio::percent(1),
        allowed_ppm: Some(14_000),
        size: Some(Bytes::mib(1)),
        headroom: Some(Bytes::mib(1)),
        coverage: Some(Ratio::percent(95)),
        judged: 1,
        missed: 1,
        refused: 1,
        points: vec![CurvePoint { size: Bytes::mib(1), loss_ppm: [1, 2, 3, 4], bound_ppm: 5, pressure_ppm: 6 }],
    }
}

fn probe() -> ProbeStatus {
    ProbeStatus {
        vm: VmName::from("web"),
        service: "10.0.0.7:5201".parse().unwrap(),
        probes: 1,
        failures: 1,
        problem: Some("refused".to_owned()),
        time: Micros::secs(1),
        traffic: Bytes::mib(1),
    }
}

fn host() -> HostStatus {
    let until = Micros::secs(9);
    HostStatus {
        total: Bytes::mib(9),
        available: Bytes::mib(1),
        reserve: Bytes::mib(1),
        burst_reserve: Bytes::mib(1),
        reserved: Bytes::mib(1),
        unavailable: Bytes::mib(1),
        short: Bytes::mib(1),
        reservations: vec![ReservationStatus { name: VmName::from("db"), size: Bytes::mib(1), until, ready: false }],
    }
}

/// One of each type that is answered with, nothing left out.
fn answers() -> Vec<(&'static str, Value)> {
    let (name, text) = (VmName::from("web"), "text".to_owned());
    let taking = Taking { vm: name.clone(), from: Bytes::mib(9), to: Bytes::mib(1), why: text.clone() };
    let hold = Hold { size: Bytes::mib(1), until: Some(Micros::secs(1)), by: text.clone(), reason: text.clone() };
    let service = ServiceStatus {
        mode: ServiceMode::Passive,
        throughput: 1,
        retransmits: Some(1),
        rtt: Some(Micros(1)),
        age: Micros(1),
        percent: Some(1),
        limit_percent: Some(1),
        learnt: 1,
        short: true,
        shortfalls: 1,
    };
    let memory = HostMemory { total: Bytes(2), available: Bytes(1), psi_some_avg10: Some(Ratio::percent(1)) };
    let decision = Decision { at: Micros(1), text: text.clone() };
    let hypervisor = || HypervisorStatus { name: "QMP".to_owned(), error: Some("gone".to_owned()) };
    let waiting = || Waiting { name: VmName::from("db"), agent: true };
    let status = Status {
        version: text.clone(),
        pid: 1,
        up: Micros(1),
        config: "/c".into(),
        law: LawName::Ballast,
        dry_run: true,
        host: Some(memory),
        pool: Some(host()),
        now: Micros(1),
        journal: Some("/j".into()),
        hypervisors: vec![hypervisor()],
        vms: vec![vm_status()],
        waiting: vec![waiting()],
        probes: vec![probe()],
        problems: vec![text.clone()],
    };
    let explained = Explained {
        status: vm_status(),
        law: LawName::Mom,
        now: Micros(1),
        probe: Some(probe()),
        decisions: vec![decision.clone()],
    };
    let reclaimed = Reclaimed { asked: Bytes(2), total: Bytes(1), dry_run: true, takings: vec![taking.clone()] };
    vec![
        ("Status", value(&status)),
        ("Explained", value(&explained)),
        ("Reclaimed", value(&reclaimed)),
        ("Done", value(&Done { done: text.clone(), notes: vec![text.clone()] })),
        ("Reloaded", value(&Reloaded { changed: vec![text.clone()], refused: vec![text.clone()] })),
        ("Problem", value(&Problem { error: text })),
        ("HostMemory", value(&memory)),
        ("HostStatus", value(&host())),
        ("ReservationStatus", value(&host().reservations[0])),
        ("HypervisorStatus", value(&hypervisor())),
        ("Waiting", value(&waiting())),
        ("VmStatus", value(&vm_status())),
        ("ForecastStatus", value(&forecast())),
        ("CurvePoint", value(&forecast().points[0])),
        ("Hold", value(&hold)),
        ("ServiceStatus", value(&service)),
        ("Counts", value(&vm_status().counts)),
        ("ProbeStatus", value(&probe())),
        ("Decision", value(&decision)),
        ("Taking", value(&taking)),
    ]
}

#[test]
fn every_answer_has_exactly_the_fields_that_its_schema_describes() {
    let schemas = Schemas::of(DOCUMENT);
    for (name, answer) in answers() {
        schemas.check(name, &answer).unwrap();
        let schema = schemas.get(name);
        assert_eq!(keys(&schema["properties"]), keys(&answer), "{name}: openapi.json and the type differ");
        let required: BTreeSet<String> =
            schema["required"].as_array().unwrap().iter().map(|k| k.as_str().unwrap().to_owned()).collect();
        assert_eq!(required, keys(&answer), "{name}: an answer leaves nothing out");
        assert_eq!(schema["additionalProperties"], json!(false), "{name}");
    }
}

/// A request has the fields of its schema, those that are required and no more must be there, and none else may be.
fn request<T: Serialize + DeserializeOwned>(schemas: &Schemas, name: &'static str, full: &T) -> &'static str {
    let (full, schema) = (value(full), schemas.get(name));
    schemas.check(name, &full).unwrap();
    assert_eq!(keys(&schema["properties"]), keys(&full), "{name}: openapi.json and the type differ");
    let required = schema["required"].as_array().unwrap();
    for key in keys(&full) {
        let mut less = full.clone();
        less.as_object_mut().unwrap().remove(&key);
        let needed = required.contains(&json!(key));
        assert_eq!(serde_json::from_value::<T>(less.clone()).is_err(), needed, "{name} without {key}");
        assert_eq!(schemas.check(name, &less).is_err(), needed, "{name} without {key}");
    }
    let mut more = full;
    more["typo"] = json!(1);
    assert!(serde_json::from_value::<T>(more.clone()).is_err() && schemas.check(name, &more).is_err(), "{name}");
    name
}

#[test]
fn every_request_is_read_as_its_schema_describes_it() {
    let schemas = Schemas::of(DOCUMENT);
    let size = Bytes::mib(1);
    let hold = HoldRequest { size, during: Some(Micros(1)), reason: "why".to_owned(), force: true };
    let requests = [
        request(&schemas, "HoldRequest", &hold),
        request(&schemas, "ReclaimRequest", &ReclaimRequest { size, dry_run: true }),
        request(&schemas, "ReserveRequest", &ReserveRequest { size, within: Micros(1) }),
        request(&schemas, "LawRequest", &LawRequest { law: LawName::Mom }),
        request(&schemas, "DryRunRequest", &DryRunRequest { on: true }),
    ];
    let checked: BTreeSet<&str> = requests
        .into_iter()
        .chain(answers().iter().map(|a| a.0))
        .chain(["Bytes", "Micros", "LawName", "Class"])
        .collect();
    let described = keys(&schemas.document()["components"]["schemas"]);
    assert_eq!(described.iter().map(String::as_str).collect::<BTreeSet<_>>(), checked, "a schema that nothing checks");
}

#[test]
fn every_name_of_an_enumeration_is_described() {
    let schemas = Schemas::of(DOCUMENT);
    assert_eq!(schemas.get("LawName")["enum"], value(&LAWS));
    assert_eq!(schemas.get("Class")["enum"], value(&[Class::Low, Class::Normal, Class::High]));
    assert_eq!(
        schemas.get("ForecastStatus")["properties"]["mode"]["enum"],
        value(&[Mode::Off, Mode::Shadow, Mode::On])
    );
    let modes = [ServiceMode::Unlimited, ServiceMode::RateLimited, ServiceMode::Passive];
    assert_eq!(schemas.get("ServiceStatus")["properties"]["mode"]["enum"], value(&modes));
    assert_eq!(schemas.get("HoldRequest")["properties"]["reason"]["maxLength"], json!(crate::control::LONGEST_REASON));
}
