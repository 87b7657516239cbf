//! What is not known is not called reached, level or the same.

use super::{arm, cell, near, phase, world};
use ballast_tests::lab::experiment::Experiment;
use ballast_tests::lab::results::*;
use ballast_tests::lab::run::Order;
use ballast_tests::lab::summary::{Figure, Place, Standing};
use ballast_tests::lab::{compare, report, summary};
use std::time::Duration;

/// What the figure of the oracles is, where five cells have these ratios.
fn of_oracles(ratios: [Option<f64>; 5]) -> Option<bool> {
    let names = ["a", "b", "c", "d", "e"];
    let blocks: Vec<Block> =
        names.iter().map(|n| world::block(n, 1, vec![plain("static"), plain("ballast")], false)).collect();
    let mut summary = summary::of(world::run_of(&blocks), &blocks);
    for (name, ratio) in names.iter().zip(ratios) {
        summary.cells.iter_mut().filter(|c| c.experiment == *name).for_each(|c| c.oracle_ratio = ratio);
    }
    figure(&summary::figures(&summary, &[]), "oracle").reached
}

#[test]
fn a_median_is_known_when_whatever_is_missing_cannot_change_which_side_it_is_on() {
    assert_eq!(of_oracles([Some(0.9), Some(1.6), Some(0.4), Some(0.6), Some(0.9)]), Some(true));
    assert_eq!(of_oracles([Some(0.9), None, Some(0.4), Some(0.6), None]), Some(true));
    assert_eq!(of_oracles([Some(0.9), None, Some(0.4), Some(1.6), None]), None);
    assert_eq!(of_oracles([Some(1.5), None, Some(1.4), Some(1.6), None]), Some(false));
    assert_eq!(of_oracles([None; 5]), None);
}

/// Four rounds, each done a little differently, and a look at what is held twice a second.
fn watched(name: &str, throughput: f64, held: impl Fn(f64) -> f64) -> ArmRun {
    let phases = (0..4).map(|i| phase(i, throughput + i as f64 / 10.0, Some(10.0))).collect();
    let mut arm = arm(name, held(0.0), phases);
    let looks = (0..=80).map(|i| f64::from(i) / 2.0);
    arm.guests[0].series = looks.map(|t| Look { t, resident_mib: held(t), ..Look::default() }).collect();
    arm
}

/// One repetition in which ours holds 250 MiB and does 95.
fn once(rival: ArmRun) -> Vec<Block> {
    let arms = vec![watched("static", 100.0, |_| 500.0), rival, watched("ballast", 95.0, |_| 250.0)];
    vec![world::block("one", 1, arms, false)]
}

fn judged(blocks: &[Block]) -> (Vec<Standing>, Vec<Figure>) {
    let summary = summary::of(world::run_of(blocks), blocks);
    let standings = summary::standings(&summary, blocks);
    let figures = summary::figures(&summary, &standings);
    (standings, figures)
}

fn figure<'a>(figures: &'a [Figure], name: &str) -> &'a Figure {
    figures.iter().find(|f| f.name.contains(name)).unwrap()
}

#[test]
fn a_rival_that_is_better_in_both_wins_in_one_repetition_too() {
    let (standings, figures) = judged(&once(watched("mom", 99.0, |t| 200.0 + t / 10.0)));
    assert_eq!(standings[0].place, Place::Lost, "{standings:?}");
    assert!(standings[0].why.ends_with("in one repetition"), "{standings:?}");
    assert!(standings[0].memory.unwrap().1.is_some(), "rounds have an interval");
    assert_eq!(figure(&figures, "against each rival").reached, Some(false), "{figures:?}");

    // Nothing was seen of its memory round by round: one value cannot tell.
    let (standings, figures) = judged(&once(arm("mom", 200.0, (0..4).map(|i| phase(i, 99.0, None)).collect())));
    assert_eq!(standings[0].place, Place::Unknown, "{standings:?}");
    assert_eq!(figure(&figures, "against each rival").reached, None, "{figures:?}");

    // Whoever ended early is not level.
    for broken in ["ballast", "mom"] {
        let mut blocks = once(watched("mom", 90.0, |_| 300.0));
        assert_eq!(judged(&blocks).0[0].place, Place::Ahead);
        blocks[0].arms.iter_mut().find(|a| a.arm == broken).unwrap().error = Some("QEMU died".to_owned());
        let (standings, figures) = judged(&blocks);
        assert_eq!(standings[0].place, Place::Unknown, "{standings:?}");
        assert_eq!(figure(&figures, "against each rival").reached, None, "{figures:?}");
    }
}

#[test]
fn what_is_ahead_for_ours_is_behind_for_a_rival() {
    let place = |held: f64, throughput: f64, p99: f64| {
        let mut rival = watched("mom", throughput, move |_| held);
        for (i, run) in rival.phases.iter_mut().enumerate() {
            *run = phase(i, throughput + i as f64 / 10.0, Some(p99));
        }
        let (standings, figures) = judged(&once(rival));
        (standings[0].place, figure(&figures, "against each rival law").reached)
    };
    // Ours holds 250 MiB, does 95 and has 10 ms.
    assert_eq!(place(250.0, 95.0, 10.0), (Place::Level, Some(true)));
    assert_eq!(place(300.0, 95.0, 10.0), (Place::Ahead, Some(true)));
    assert_eq!(place(200.0, 95.0, 10.0), (Place::Behind, Some(true)), "nothing lost by holding less");
    assert_eq!(place(250.0, 90.0, 10.0), (Place::Ahead, Some(true)));
    assert_eq!(place(250.0, 99.0, 10.0), (Place::Behind, Some(true)));
    assert_eq!(place(250.0, 95.0, 12.0), (Place::Ahead, Some(true)));
    assert_eq!(place(250.0, 95.0, 8.0), (Place::Behind, Some(true)));
    assert_eq!(place(200.0, 95.0, 8.0), (Place::Lost, Some(false)), "it saves more, and nobody waits as long");
    assert_eq!(place(200.0, 99.0, 12.0), (Place::Level, None), "more work, later, in less memory: this cannot tell");
    assert_eq!(place(200.0, 90.0, 10.0), (Place::Level, Some(true)));

    // An arm that is no law is judged apart.
    let (standings, figures) = judged(&once(watched("free-page-reporting", 99.0, |_| 200.0)));
    assert_eq!((standings[0].place, standings[0].law), (Place::Lost, false));
    assert_eq!(figure(&figures, "against each arm without a law").reached, Some(false));
    assert_eq!(figure(&figures, "against each rival law").reached, None, "there is none");
}

#[test]
fn what_static_did_not_do_nobody_is_compared_with() {
    let mut blocks = once(watched("mom", 99.0, |_| 300.0));
    blocks[0].arms[0].phases.truncate(1);
    blocks[0].arms[0].error = Some("QEMU died".to_owned());
    let (_, figures) = judged(&blocks);
    for name in ["OOM kills", "throughput to static", "p99", "against each rival law"] {
        let figure = figure(&figures, name);
        assert_eq!(figure.reached, None, "{figure:?}");
        assert!(name.starts_with("against") || figure.value.contains("not known to its end: one"), "{figure:?}");
    }
}

#[test]
fn a_phase_that_suffers_is_not_hidden_by_the_others() {
    let labelled = |name: &str, throughputs: [f64; 5]| {
        let mut run = watched(name, 1.0, |_| 250.0);
        let phases = throughputs.iter().enumerate().map(|(i, t)| {
            let mut phase = phase(i, *t, Some(1000.0 / t));
            phase.label = if i % 2 == 1 { "growth" } else { "load" }.to_owned();
            phase
        });
        run.phases = phases.collect();
        run
    };
    let arms = vec![labelled("static", [100.0; 5]), labelled("ballast", [99.0, 20.0, 101.0, 40.0, 100.0])];
    let blocks = [world::block("one", 1, arms, false)];
    let summary = summary::of(world::run_of(&blocks), &blocks);
    let ours = cell(&summary, "one", "ballast");
    near(ours.throughput_ratio, 0.99);
    let worst = ours.worst_phase_throughput.as_ref().unwrap();
    assert_eq!(worst.label, "growth");
    near(Some(worst.ratio), 0.3);
    near(ours.worst_phase_p99.as_ref().map(|w| w.ratio), 3.75);
    let (_, figures) = judged(&blocks);
    let throughput = figure(&figures, "throughput to static");
    assert!(throughput.value.ends_with("; worst phase 0.30 (one, growth)"), "{throughput:?}");
    let csv = String::from_utf8(summary::csv(&summary).unwrap()).unwrap();
    assert!(csv.lines().nth(2).unwrap().contains(",growth,"), "{csv}");
}

#[test]
fn memory_is_reckoned_by_round_and_while_busy() {
    let blocks = once(watched("mom", 99.0, |t| if t < 20.0 { 100.0 } else { 300.0 }));
    let summary = summary::of(world::run(), &blocks);
    let mom = cell(&summary, "one", "mom");
    // Rounds begin at 0, 10, 20 and 30 s; between two looks the mean of both counts.
    assert!((mom.resident_ratio.unwrap() - 0.4).abs() < 0.01, "{mom:?}");
    let of_static = mom.ci["resident_ratio"];
    assert!((of_static.low - 0.2).abs() < 0.01 && (of_static.high - 0.6).abs() < 0.01, "{of_static:?}");
    let held = mom.ci["resident_mib"];
    assert!((held.low - 100.0).abs() < 5.0 && (held.high - 300.0).abs() < 5.0, "{held:?}");
    near(mom.resident_mib, 100.0);

    // Each phase takes 5 s of 10, and 100 s were watched.
    near(mom.busy_share, 0.2);
    let peaks = |t: f64| if t % 10.0 <= 5.0 { 400.0 } else { 0.0 };
    let summary = summary::of(world::run(), &once(watched("mom", 99.0, peaks)));
    let mom = cell(&summary, "one", "mom");
    near(mom.resident_busy_mib, 400.0);
    near(mom.resident_busy_ratio, 0.8);
    assert!(mom.resident_ratio.unwrap() < 0.5, "{mom:?}");
    let table = summary::table(&summary, &[]);
    assert!(table.contains("an arm's own phases ran in 20 % of the time"), "{table}");
}

#[test]
fn what_is_broken_or_missing_is_not_reached() {
    let good = || (1..=2).map(|n| world::block("good", n, vec![plain("static"), plain("ballast")], false));
    let blocks: Vec<Block> = good().collect();
    let reached = |run: Run, blocks: &[Block], name: &str| {
        let summary = summary::of(run, blocks);
        let figure = figure(&summary::figures(&summary, &[]), name).clone();
        (figure.reached, figure.value)
    };
    let (known, words) = reached(world::run_of(&blocks), &blocks, "throughput");
    assert_eq!((known, words.as_str()), (Some(true), "1.00 in good, over 1 of 1 cells"));
    // No work of it has latencies, under no law: nothing is missing.
    assert_eq!(reached(world::run_of(&blocks), &blocks, "p99 latency"), (None, "nothing to compare".to_owned()));
    let mut with_latency = blocks.clone();
    let arms = vec![
        arm("static", 512.0, vec![phase(0, 9.0, Some(3.0))]),
        arm("ballast", 256.0, vec![phase(0, 9.0, Some(3.0))]),
    ];
    with_latency.push(world::block("timed", 1, arms, false));
    assert_eq!(reached(world::run_of(&with_latency), &with_latency, "p99 latency").0, Some(true));

    let mut dead = plain("ballast");
    dead.error = Some("QEMU died".to_owned());
    dead.phases.clear();
    let mut broken = blocks.clone();
    broken.push(world::block("bad", 1, vec![plain("static"), dead], false));
    let mut run = world::run_of(&blocks);
    run.left_out =
        vec!["late 1 (begun, and not through in time)".to_owned(), "late oracle 1".to_owned(), "good 3".to_owned()];
    for name in ["OOM kills", "throughput"] {
        let (known, words) = reached(world::run_of(&broken), &broken, name);
        assert!(known.is_none() && words.contains("not known to its end: bad"), "{words}");
        let (known, words) = reached(run.clone(), &blocks, name);
        assert!(known.is_none() && words.ends_with("; not run: late"), "{words}");
    }
    assert!(reached(world::run_of(&broken), &broken, "throughput").1.contains("over 1 of 2 cells"));
    // Asked for, and no block came of it, for whatever reason.
    let mut run_of_two = world::run_of(&blocks);
    run_of_two.experiments.insert("lost".to_owned(), String::new());
    let (known, words) = reached(run_of_two, &blocks, "OOM kills");
    assert_eq!((known, words.as_str()), (None, "0 and 0; not run: lost"));
    let summary = summary::of(run, &blocks);
    assert!(summary::table(&summary, &[]).contains("left out for lack of time: late oracle 1"));
    assert!(report::page(&summary, &blocks).unwrap().contains("in time), late oracle 1, good 3"));
}

fn plain(name: &str) -> ArmRun {
    arm(name, 256.0, vec![phase(0, 100.0, None)])
}

#[test]
fn blocks_that_time_did_not_allow_are_written_down() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("small.toml");
    let text = "title = \"t\"\narms = [\"static\"]\n[[guest]]\nname = \"a\"\nmemory = \"256MiB\"\n[[phase]]\n\
                work = { do = \"rest\", secs = 1 }\n";
    std::fs::write(&file, text).unwrap();
    let order = || Order {
        experiments: vec![Experiment::read(&file).unwrap()],
        wrong: vec!["mistyped".to_owned()],
        folder: folder.path().join("out"),
        asked: "small.toml".to_owned(),
        within: Some(Duration::ZERO),
        fresh: false,
        parallel: 1,
    };
    // What nothing ever came of is not asked for any more by another order.
    let other = folder.path().join("other.toml");
    std::fs::copy(&file, &other).unwrap();
    let before = Order { experiments: vec![Experiment::read(&other).unwrap()], ..order() };
    before.run().unwrap();
    let order = order();
    // Twice: the second run knows of the first, and names each block once.
    for _ in 0..2 {
        assert_eq!(order.run().unwrap().ran, 0);
        let run: Run = read_json(&order.folder.join("run.json")).unwrap();
        assert_eq!(run.left_out, ["small 1", "small oracle 1 (without a first repetition)"]);
        assert_eq!(run.experiments.keys().collect::<Vec<_>>(), ["mistyped", "small"], "asked for all the same");
    }
}

#[test]
fn one_repetition_does_not_say_that_nothing_differs() {
    use summary::{Good, in_words};
    let at = |low, high| Some(Interval { low, high });
    assert_eq!(in_words(0.9, at(0.8, 1.1), 1.0, Good::More, 1), "one repetition: its noise is unknown");
    assert_eq!(in_words(0.9, at(0.8, 1.1), 1.0, Good::More, 2), "no difference");
    assert_eq!(in_words(0.7, at(0.6, 0.8), 1.0, Good::More, 1), "worse by 30 % in one repetition");
    assert_eq!(in_words(0.7, at(0.6, 0.8), 1.0, Good::Less, 2), "better by 30 %");
    let summary = summary::of(world::run(), &once(watched("mom", 100.0, |_| 500.0)));
    assert_eq!(cell(&summary, "one", "mom").verdict["throughput_ratio"], "one repetition: its noise is unknown");
    assert!(!summary::table(&summary, &[]).contains("= 1."));
}

#[test]
fn work_that_did_not_come_to_its_end_is_counted() {
    let mut blocks = once(watched("mom", 99.0, |_| 300.0));
    let unnamed = summary::table(&summary::of(world::run(), &blocks), &[]);
    assert!(!unnamed.contains("unfinished"), "{unnamed}");
    blocks[0].arms[2].phases[1].outcome.unfinished = true;
    let summary = summary::of(world::run(), &blocks);
    assert_eq!(cell(&summary, "one", "ballast").unfinished, 1);
    let (_, figures) = judged(&blocks);
    assert_eq!(figures[0].reached, Some(false));
    assert_eq!(figures[0].value, "0 and 0; 1 unfinished");
    assert!(summary::table(&summary, &[]).contains("unfinished"));
    let csv = String::from_utf8(summary::csv(&summary).unwrap()).unwrap();
    assert!(csv.lines().next().unwrap().contains(",unfinished,"), "{csv}");
    let page = report::page(&summary, &blocks).unwrap();
    assert!(page.contains("<b class=\"bad\">1 unfinished</b>") && page.contains("<th>unfinished</th>"));
    // Its latencies lack the longest.
    blocks[0].arms[2].phases.iter_mut().for_each(|p| p.outcome.unfinished = true);
    let late = summary::of(world::run(), &blocks);
    assert_eq!((cell(&late, "one", "ballast").p99_ratio, cell(&late, "one", "mom").p99_ratio), (None, Some(1.0)));
    blocks[0].arms[2].phases.iter_mut().for_each(|p| p.outcome.unfinished = p.index == 1);
    // Nor is it level with a rival that came to its end, nor the other way round.
    assert_eq!(judged(&blocks).0[0].place, Place::Lost);
    blocks[0].arms[2].phases[1].outcome.unfinished = false;
    blocks[0].arms[1].phases[1].outcome.unfinished = true;
    assert_eq!(judged(&blocks).0[0].place, Place::Ahead);
    // A block of an earlier version says nothing of it.
    let outcome: ballast_tests::lab::work::Outcome = serde_json::from_str(
        r#"{"throughput":1.0,"unit":"","latency":null,"failed_allocations":0,"killed":0,"detail":""}"#,
    )
    .unwrap();
    assert!(!outcome.unfinished);
}

#[test]
fn a_variant_of_ours_is_no_rival() {
    let mut run = world::run();
    let text = "arms = [\"static\", \"mom\", { name = \"bare\", law = \"ballast\" }, { name = \"probed\", law = \"static\" }, \
                \"ballast\"]\n";
    run.experiments.insert("one".to_owned(), text.to_owned());
    let mut blocks = once(watched("mom", 99.0, |_| 300.0));
    blocks[0].arms.extend([watched("bare", 99.0, |_| 200.0), watched("probed", 99.0, |_| 500.0)]);
    let summary = summary::of(run, &blocks);
    assert_eq!(cell(&summary, "one", "bare").law, "ballast");
    let rivals: Vec<String> = summary::standings(&summary, &blocks).into_iter().map(|s| s.rival).collect();
    assert_eq!(rivals, ["mom"]);
    let page = report::page(&summary, &blocks).unwrap();
    assert!(page.contains("None of the 1 others") && page.contains("(1 pairs)"), "findings are of rivals too");
}

#[test]
fn comparisons_tell_kills_errors_and_what_cannot_be_compared() {
    let mut blocks = once(watched("mom", 99.0, |_| 300.0));
    blocks[0].arms[2].phases[0].outcome.killed = 2;
    blocks[0].arms[1].error = Some("QEMU died".to_owned());
    let row = |c: &compare::Comparison, quantity: &str| c.rows.iter().find(|r| r.quantity == quantity).unwrap().clone();
    let arms = compare::arms(&blocks, "ballast", "mom").unwrap();
    assert_eq!(row(&arms, "killed and refused").verdict, "worse: 2 in 1 repetitions, 0 in 1");
    assert_eq!(row(&arms, "ended early").verdict, "mom, repetition 1: QEMU died");

    let whole = once(watched("mom", 99.0, |_| 300.0));
    let mut fewer = whole.clone();
    fewer[0].arms.remove(1);
    let runs = compare::runs((&whole, "one"), (&fewer, "two"), "ballast").unwrap();
    let memory = row(&runs, "memory held");
    assert_eq!(memory.ratio, None);
    assert!(memory.verdict.starts_with("not compared: 3 arms took turns in the one run, 2 in the other"), "{memory:?}");
    near(row(&runs, "memory held, busy").ratio, 1.0);
    near(row(&compare::runs((&whole, "one"), (&whole, "two"), "ballast").unwrap(), "memory held").ratio, 1.0);
}

#[test]
fn agents_are_charged_for_all_the_time_they_had() {
    let mut blocks = once(watched("mom", 99.0, |_| 300.0));
    let ours = &mut blocks[0].arms[2];
    ours.host_agent_cpu_s = 1.0;
    ours.guests[0].totals.agent_cpu_s = 0.5;
    let of_before = summary::of(world::run(), &blocks);
    near(cell(&of_before, "one", "ballast").host_agent_cpu, 0.01);
    // 100 s of phases after 25 s in which the law found its size.
    blocks[0].arms[2].agents_s = Some(125.0);
    let summary = summary::of(world::run(), &blocks);
    near(cell(&summary, "one", "ballast").host_agent_cpu, 0.008);
    near(cell(&summary, "one", "ballast").guest_agent_cpu, 0.004);
    // What it took while it found its size counts with the time that took.
    blocks[0].arms[2].guests[0].totals.inflated_mib = 300.0;
    let page = report::page(&summary::of(world::run(), &blocks), &blocks).unwrap();
    assert!(page.contains("<td>144</td>"), "300 MiB in 125 s");
}

#[test]
fn what_iperf3_itself_costs_is_a_figure() {
    // Phases last 5 s of 10: what comes in between is not counted.
    let probes = |throughput: f64, repetitions: u32, every: f64| {
        let blocks: Vec<Block> = (1..=repetitions)
            .map(|n| {
                let mut probed = watched("static-probed", throughput, |_| 500.0);
                let probe = |t| ProbeSeen { t, guest: "guest".to_owned(), mbit_s: 9.0, retransmits: 0, rtt_ms: None };
                probed.probes =
                    (0..).map(|i| (f64::from(i) + 0.5) * every).take_while(|t| *t < 40.0).map(probe).collect();
                world::block("net", n, vec![watched("static", 100.0, |_| 500.0), probed], false)
            })
            .collect();
        let summary = summary::of(world::run(), &blocks);
        figure(&summary::figures(&summary, &[]), "iperf3's own disturbance").clone()
    };
    // One a second: sixty times as many as usual, which cost a sixtieth.
    let often = probes(90.0, 3, 1.0);
    assert_eq!(often.reached, Some(true), "{often:?}");
    let said = "0.9983 [0.9983, 0.9983] with one every 60.0 s; 0.90 [0.90, 0.90] with 1.00 a second, in net";
    assert_eq!(often.value, said);
    assert_eq!(probes(20.0, 3, 1.0).reached, Some(true));
    // Four in 20 s: 12 times as many.
    assert_eq!(probes(70.0, 3, 5.0).reached, Some(false), "{:?}", probes(70.0, 3, 5.0));
    assert_eq!(probes(80.0, 3, 5.0).reached, Some(true), "{:?}", probes(80.0, 3, 5.0));
    let none = probes(99.5, 3, 1000.0);
    assert!(none.reached.is_none() && none.value.starts_with("no probe came while it worked"), "{none:?}");
    let once = probes(99.5, 1, 1.0);
    assert!(once.reached.is_none() && once.value.contains("noise is unknown"), "{once:?}");
}

#[test]
fn an_oracle_says_how_sure_it_is() {
    let oracle = Oracle { size_mib: 340, resident_mib: 330.0, lost_at: Some((320, "1 OOM kill".to_owned())) };
    let words = summary::oracle_in_words(&oracle);
    assert!(words.starts_with("between 320 MiB a guest, which lost (1 OOM kill), and 340 MiB"), "{words}");
    assert!(words.contains("each size was tried once") && words.ends_with("330 MiB held in all"), "{words}");
}
