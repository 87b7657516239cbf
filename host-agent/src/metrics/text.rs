//! A [`Snapshot`] as Prometheus reads it: the text format 0.0.4, which `promtool check metrics` can check.
//!
//! Base units, counters end in `_total`, one family for each quantity with the VM as its label (the conventions of
//! <https://prometheus.io/docs/practices/naming/>). What alerts look at is there from the VM's first moment with a zero,
//! because `increase()` sees nothing in a counter that begins at one. What is not known has no sample: a zero would be a
//! statement.

use super::{Direction, SHORTFALLS, Seen, Snapshot, VERDICTS, shortfall_name};
use ballast_planner::source_name;
use ballast_protocol::Bytes;
use prometheus::core::Collector;
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Result, TextEncoder};

/// The content type.
pub const FORMAT: &str = prometheus::TEXT_FORMAT;

type OfVm = fn(&Seen) -> Option<f64>;

/// Name, help, value.
const GAUGES: [(&str, &str, OfVm); 27] = [
    ("ballast_vm_running", "Whether the vCPUs of the VM run.", |v| flag(v.status.running)),
    ("ballast_vm_reachable", "Whether the hypervisor tells what the VM keeps.", |v| flag(v.status.actual.is_some())),
    ("ballast_vm_agent_alive", "Whether the guest agent reports.", |v| flag(v.status.agent == "alive")),
    ("ballast_vm_report_age_seconds", "Age of the guest agent's last report.", |v| {
        v.status.report_age.map(|a| a.secs_f64())
    }),
    ("ballast_vm_reports_believed", "Whether the guest agent's reports are believed.", |v| flag(v.status.trusted)),
    ("ballast_vm_deflates_on_oom", "Whether the balloon lets go when the guest runs out of memory.", |v| {
        flag(v.status.deflate_on_oom)
    }),
    ("ballast_vm_memory_max_bytes", "The most the VM may have.", |v| size(Some(v.status.max))),
    ("ballast_vm_memory_min_bytes", "The least the VM may be ordered to keep, leases included.", |v| {
        size(Some(v.status.min))
    }),
    ("ballast_vm_memory_target_bytes", "What the VM has been told to keep.", |v| size(Some(v.status.target))),
    ("ballast_vm_memory_actual_bytes", "What the VM keeps, by the hypervisor.", |v| size(v.status.actual)),
    ("ballast_vm_memory_available_bytes", "What can be had in the guest without swapping.", |v| {
        size(v.status.available)
    }),
    ("ballast_vm_memory_slack_bytes", "Free memory of the guest above its low watermark.", |v| size(v.status.slack)),
    ("ballast_vm_memory_floor_bytes", "What the guest cannot go below without swapping or killing.", |v| {
        size(v.status.floor)
    }),
    ("ballast_vm_memory_headroom_bytes", "The slack that the VM is left with when it is quiet.", |v| {
        size(Some(v.status.headroom))
    }),
    ("ballast_vm_memory_pending_bytes", "Demands of the guest that are not over.", |v| size(v.status.pending)),
    ("ballast_vm_memory_missing_bytes", "What the VM is to keep beyond its target, and the host does not have.", |v| {
        size(Some(v.status.want.map_or(Bytes::ZERO, |w| w - v.status.target)))
    }),
    ("ballast_vm_held", "Whether an operator holds the VM at a size.", |v| flag(v.status.hold.is_some())),
    ("ballast_vm_hold_bytes", "The size at which an operator holds the VM.", |v| {
        size(v.status.hold.as_ref().map(|h| h.size))
    }),
    ("ballast_vm_leases", "Leases that applications in the guest hold.", |v| Some(v.status.leases as f64)),
    ("ballast_vm_weight", "The weight of the VM in its class.", |v| Some(f64::from(v.status.weight))),
    ("ballast_vm_service_level_ratio", "What the VM's network gives, to the VM's own baseline.", |v| {
        Some(f64::from(v.status.service?.percent?) / 100.0)
    }),
    ("ballast_vm_service_limit_ratio", "Below this part of its baseline the VM's service is short.", |v| {
        Some(f64::from(v.status.service?.limit_percent?) / 100.0)
    }),
    ("ballast_vm_service_throughput_bytes_per_second", "What the last probe of the VM's network measured.", |v| {
        Some(v.status.service?.throughput as f64 / 8.0)
    }),
    ("ballast_vm_service_short", "Whether the VM's service fell short and has not recovered.", |v| {
        flag(v.status.service?.short)
    }),
    (
        "ballast_vm_forecast_coverage_ratio",
        "The part of the last 64 outcomes within the corrected 95 % quantile.",
        |v| Some(f64::from(v.status.forecast.as_ref()?.coverage?.millionths()) / 1e6),
    ),
    ("ballast_vm_forecast_used", "Whether the headroom is a model's now.", |v| flag(v.status.forecast.as_ref()?.used)),
    ("ballast_vm_forecast_age_seconds", "How old the features of the last forecast are.", |v| {
        Some(v.status.forecast.as_ref()?.age?.secs_f64())
    }),
];

const COUNTERS: [(&str, &str, OfVm); 12] = [
    ("ballast_vm_orders_refused_total", "Orders that the hypervisor refused.", |v| count(v.totals.orders_refused)),
    ("ballast_vm_takings_undone_total", "Takings undone because they hurt.", |v| count(v.status.counts.undone)),
    ("ballast_vm_takings_stalled_total", "Takings that the guest could not follow.", |v| {
        count(v.status.counts.stalled)
    }),
    (
        "ballast_vm_self_deflations_total",
        "Times that the balloon let go by itself: each is a failure of Ballast.",
        |v| count(v.status.counts.self_deflated),
    ),
    ("ballast_vm_oom_kills_total", "Processes that the OOM killer ended in the guest.", |v| {
        count(v.status.counts.oom_kills)
    }),
    ("ballast_vm_reports_distrusted_total", "Reports of the guest agent that were not believed.", |v| {
        count(v.status.counts.distrusted)
    }),
    ("ballast_vm_agent_silences_total", "Times that the guest agent was silent or gone.", |v| count(v.totals.silences)),
    ("ballast_vm_service_shortfalls_total", "Times that the VM's service fell short.", |v| {
        count(v.status.service.map_or(0, |s| s.shortfalls))
    }),
    ("ballast_vm_memory_stall_seconds_total", "Time in which tasks of the guest waited for memory (PSI some).", |v| {
        Some(v.stalled?.secs_f64())
    }),
    ("ballast_vm_forecasts_judged_total", "Forecasts whose outcome is known.", |v| {
        count(v.status.forecast.as_ref().map_or(0, |f| f.judged))
    }),
    ("ballast_vm_forecasts_missed_total", "Forecasts whose outcome was worse than the corrected 95 % quantile.", |v| {
        count(v.status.forecast.as_ref().map_or(0, |f| f.missed))
    }),
    ("ballast_vm_forecasts_refused_total", "Forecasts that could not be used at all.", |v| {
        count(v.status.forecast.as_ref().map_or(0, |f| f.refused))
    }),
];

fn flag(is: bool) -> Option<f64> {
    Some(f64::from(u8::from(is)))
}

fn size(size: Option<Bytes>) -> Option<f64> {
    size.map(|s| s.0 as f64)
}

fn count(count: u64) -> Option<f64> {
    Some(count as f64)
}

type Labels<'a> = &'a [(&'static str, &'a str)];

/// The text as far as it is. Each family is written as soon as it is whole: those of a thousand VMs together take
/// several times the memory of their text, and the process would keep it.
#[derive(Default)]
struct Text(String);

impl Text {
    fn add(&mut self, kind: MetricType, name: &str, help: &str, metrics: Vec<Metric>) -> Result<()> {
        // The encoder refuses a family without samples.
        if metrics.is_empty() {
            return Ok(());
        }
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        self.write(&[family])
    }

    /// A figure of the daemon or the host.
    fn one(&mut self, name: &str, help: &str, value: f64) -> Result<()> {
        self.add(MetricType::GAUGE, name, help, vec![sample(MetricType::GAUGE, &[], value)])
    }

    fn write(&mut self, families: &[MetricFamily]) -> Result<()> {
        TextEncoder::new().encode_utf8(families, &mut self.0)
    }
}

fn sample(kind: MetricType, labels: Labels<'_>, value: f64) -> Metric {
    let labels = labels.iter().map(|(name, value)| {
        let mut label = LabelPair::default();
        label.set_name((*name).to_owned());
        label.set_value((*value).to_owned());
        label
    });
    let mut metric = Metric::from_label(labels.collect());
    if kind == MetricType::COUNTER {
        let mut counter = Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
    }
    metric
}

/// The text.
///
/// # Errors
/// None that anybody could cause: the names are checked by a test, and what guests say ends in label values, which are
/// escaped.
pub fn render(snapshot: &Snapshot) -> Result<String> {
    let mut text = Text::default();
    daemon(&mut text, snapshot)?;
    host(&mut text, snapshot)?;
    vms(&mut text, &snapshot.vms)?;
    let latencies = &snapshot.latencies;
    for histogram in [&latencies.demand, &latencies.call, &latencies.relief, &latencies.settle] {
        text.write(&histogram.collect())?;
    }
    Ok(text.0)
}

fn daemon(text: &mut Text, snapshot: &Snapshot) -> Result<()> {
    let gauge = MetricType::GAUGE;
    let info = |label, value: &str| vec![sample(gauge, &[(label, value)], 1.0)];
    text.add(gauge, "ballast_build_info", "The daemon's version.", info("version", env!("CARGO_PKG_VERSION")))?;
    text.add(gauge, "ballast_law_info", "The law that rules.", info("law", &snapshot.law.to_string()))?;
    text.one("ballast_dry_run", "Whether orders are only said.", f64::from(u8::from(snapshot.dry_run)))?;
    text.one("ballast_start_time_seconds", "When the daemon began, since 1970.", snapshot.started)?;
    text.one("ballast_events_waiting", "Events that the daemon's task has not come to.", snapshot.queue as f64)?;
    text.one("ballast_vms", "VMs that are managed.", snapshot.vms.len() as f64)?;
    text.one(
        "ballast_vms_waiting",
        "VMs that the configuration names and no hypervisor has.",
        snapshot.waiting as f64,
    )?;
    let help = "What waits for somebody to mend it, as a wrong table; `ballast-host status` names each.";
    text.one("ballast_problems", help, snapshot.problems.len() as f64)?;
    let hypervisors = snapshot
        .hypervisors
        .iter()
        .map(|h| sample(gauge, &[("hypervisor", &h.name)], f64::from(u8::from(h.error.is_none()))));
    let help = "Whether the hypervisor answered when it was last asked for its VMs.";
    text.add(gauge, "ballast_hypervisor_up", help, hypervisors.collect())
}

fn host(text: &mut Text, snapshot: &Snapshot) -> Result<()> {
    let Some(host) = &snapshot.host else { return Ok(()) };
    for (name, help, size) in [
        ("ballast_host_memory_total_bytes", "The budget of all VMs, or all of the host's memory.", host.total),
        ("ballast_host_memory_available_bytes", "What of it nobody has.", host.available),
        ("ballast_host_memory_reserve_bytes", "What is never handed out.", host.reserve),
        ("ballast_host_memory_burst_reserve_bytes", "What is kept ready for demands.", host.burst_reserve),
        ("ballast_host_memory_reserved_bytes", "What is reserved for VMs that are to come.", host.reserved),
        ("ballast_host_memory_unavailable_bytes", "What is in VMs that cannot give.", host.unavailable),
        ("ballast_host_memory_short_bytes", "What VMs and reservations lack; zero: enough for all.", host.short),
    ] {
        text.one(name, help, size.0 as f64)?;
    }
    let waiting = host.reservations.iter().filter(|r| !r.ready).count();
    text.one("ballast_host_reservations", "Reservations.", host.reservations.len() as f64)?;
    text.one("ballast_host_reservations_waiting", "Reservations without room yet.", waiting as f64)
}

fn vms(text: &mut Text, vms: &[Seen]) -> Result<()> {
    let (gauge, counter) = (MetricType::GAUGE, MetricType::COUNTER);
    let both = GAUGES.iter().map(|g| (gauge, g)).chain(COUNTERS.iter().map(|c| (counter, c)));
    for (kind, (name, help, value)) in both {
        let samples = vms.iter().filter_map(|v| Some(sample(kind, &[("vm", &v.status.name.0)], value(v)?)));
        text.add(kind, name, help, samples.collect())?;
    }
    let by = |label: &'static str, of: &dyn Fn(&Seen) -> Vec<(String, u64)>| -> Vec<Metric> {
        let samples = vms.iter().flat_map(|v| {
            let name = &v.status.name.0;
            of(v).into_iter().map(|(value, n)| sample(counter, &[("vm", name), (label, &value)], n as f64))
        });
        samples.collect()
    };
    let orders = vms.iter().flat_map(|v| {
        v.totals.orders.iter().map(|((direction, reason), n)| {
            let labels = [("vm", v.status.name.0.as_str()), ("direction", direction.name()), ("reason", reason)];
            sample(counter, &labels, *n as f64)
        })
    });
    text.add(counter, "ballast_vm_orders_total", "Orders to the balloon, by reason.", orders.collect())?;
    let moved = by("direction", &|v| {
        let counts = &v.status.counts;
        vec![(Direction::Take.name().into(), counts.taken.0), (Direction::Give.name().into(), counts.given.0)]
    });
    let help = "Memory that really left the VM, or came back, by the hypervisor's count.";
    text.add(counter, "ballast_vm_moved_bytes_total", help, moved)?;
    let demands = by("source", &|v| {
        v.status.counts.demands.iter().map(|(source, n)| (source_name(*source).to_owned(), *n)).collect()
    });
    text.add(counter, "ballast_vm_demands_total", "Demands of the guest, by how it knew.", demands)?;
    let answers =
        by("verdict", &|v| VERDICTS.iter().zip(v.totals.answers).map(|(v, n)| ((*v).to_owned(), n)).collect());
    text.add(counter, "ballast_vm_demand_answers_total", "Answers to demands.", answers)?;
    let shortfalls = by("reason", &|v| {
        let reasons = SHORTFALLS.iter().zip(v.totals.shortfalls);
        reasons.map(|(why, n)| (shortfall_name(*why).to_owned(), n)).collect()
    });
    let help = "Demands that were not met in full, by reason; at_maximum: the VM has all that it may have.";
    text.add(counter, "ballast_vm_demand_shortfalls_total", help, shortfalls)?;
    let probes = by("result", &|v| {
        let probe = v.probe.iter();
        probe.flat_map(|p| [("measured".to_owned(), p.probes), ("failed".to_owned(), p.failures)]).collect()
    });
    text.add(counter, "ballast_vm_probes_total", "Probes of the VM's service.", probes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Metrics, Totals};
    use ballast_planner::{Facts, LawName, ServiceMode, ServiceStatus, Vm, VmName, VmSettings, VmStatus};
    use ballast_protocol::Micros;

    fn snapshot() -> Snapshot {
        let facts = Facts {
            max: Bytes::mib(512),
            actual: Bytes::mib(256),
            running: true,
            balloon: true,
            deflate_on_oom: Some(true),
        };
        let vm = Vm::new(facts, VmSettings::default(), Micros::ZERO);
        let status = VmStatus::of(&VmName::from("web"), &vm, Micros::ZERO);
        Snapshot {
            at: Micros::ZERO,
            started: 0.0,
            law: LawName::Ballast,
            dry_run: false,
            host: None,
            hypervisors: Vec::new(),
            problems: vec!["VM `web`: wrong".to_owned()],
            waiting: 0,
            queue: 0,
            vms: vec![Seen { status, stalled: None, totals: Totals::default(), probe: None }],
            latencies: Metrics::default().latencies(),
            marks: Vec::new(),
            past: None,
        }
    }

    #[test]
    fn what_is_not_known_has_no_sample() {
        let mut snapshot = snapshot();
        let text = render(&snapshot).unwrap();
        assert!(text.contains("\nballast_vm_memory_actual_bytes{vm=\"web\"} 268435456\n"), "{text}");
        // And so is each reason for a shortfall, by its variant's name, before there was one.
        for why in ["at_maximum", "host_short", "no_balloon", "held", "distrusted"] {
            let line = format!("ballast_vm_demand_shortfalls_total{{vm=\"web\",reason=\"{why}\"}} 0");
            assert!(text.contains(&format!("\n{line}\n")), "{line}: {text}");
        }
        for unknown in ["_floor_", "_available_", "_report_age_", "_service_level_", "_stall_", "ballast_host_"] {
            assert!(!text.contains(unknown), "{unknown}: {text}");
        }
        snapshot.vms[0].stalled = Some(Micros::millis(1500));
        snapshot.vms[0].status.service = Some(ServiceStatus {
            mode: ServiceMode::Unlimited,
            throughput: 8_000_000,
            retransmits: None,
            rtt: None,
            age: Micros::ZERO,
            percent: Some(87),
            limit_percent: Some(45),
            learnt: 32,
            short: false,
            shortfalls: 2,
        });
        let text = render(&snapshot).unwrap();
        for line in [
            "ballast_vm_memory_stall_seconds_total{vm=\"web\"} 1.5",
            "ballast_vm_service_level_ratio{vm=\"web\"} 0.87",
            "ballast_vm_service_throughput_bytes_per_second{vm=\"web\"} 1000000",
            "ballast_vm_service_shortfalls_total{vm=\"web\"} 2",
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{line}: {text}");
        }
    }

    #[test]
    fn a_daemon_without_vms_can_be_scraped() {
        let empty = Snapshot { vms: Vec::new(), ..snapshot() };
        let text = render(&empty).unwrap();
        assert!(
            text.contains("\nballast_vms 0\n")
                && text.contains("\nballast_problems 1\n")
                && !text.contains("ballast_vm_"),
            "{text}"
        );
    }
}
