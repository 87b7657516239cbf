//! Experiment files: what is run, in which guests, under which laws.
//!
//! ```toml
//! title = "A job that needs 200 MiB for a moment"
//! seed = 1
//! repetitions = 3
//! settle = "25s"              # after ageing: the laws find their size
//! gap = "500ms"               # between two arms' turns
//! patience = "120s"           # a phase is ended after this, with what it has done by then
//! lasting = "90s"             # the phases begin anew until so much time has passed; otherwise each is run once
//! budget = "448MiB"           # the host memory that the guests of one arm have together
//! arms = ["static", "mom", "ballast", { name = "reporting-too", law = "ballast", reporting = true }]
//!
//! [[guest]]
//! name = "a"
//! memory = "512MiB"
//!
//! [[phase]]
//! work = { do = "burst", mib = 200, work = 4 }
//! times = 3
//! ```
//! Everything that can be wrong with a file is found before anything boots, and named with file and line.

use super::arm::{Arm, Law};
use super::block;
use super::work::Work;
use ballast_host::config::Config;
use ballast_protocol::Bytes;
use serde::Deserialize;
use serde::de::{Deserializer, Error};
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::Spanned;

/// The least memory with which the guest's kernel, image and test daemon run: 96 MiB of 512 measured.
const LEAST: Bytes = Bytes::mib(96);
/// All arms' guests are alive at once; far beyond what two cores can serve.
const MOST_GUESTS: usize = 64;

/// How long the guests of an oracle's search settle: 400 MiB inflate in two seconds.
const FIXED_SETTLES: Duration = Duration::from_secs(5);

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ExperimentError {
    /// It cannot be read.
    #[error("{path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something in it is wrong.
    #[error("{path}:{line}: {problem}")]
    Wrong {
        /// Which.
        path: PathBuf,
        /// Where, from 1.
        line: usize,
        /// What, and the mend.
        problem: String,
    },
}

/// An experiment, checked.
#[derive(Clone, Debug)]
pub struct Experiment {
    /// The file's stem.
    pub name: String,
    /// For people.
    pub title: String,
    /// Shuffles the arms.
    pub seed: u64,
    /// How many blocks.
    pub repetitions: u32,
    /// From the end of ageing to the first phase.
    pub settle: Duration,
    /// Between two arms' turns.
    pub gap: Duration,
    /// When a phase that does not end is ended.
    pub patience: Duration,
    /// The phases begin anew until so much time has passed since the first; `None`: each is run once.
    pub lasting: Option<Duration>,
    /// What the guests of one arm may hold together.
    pub budget: Option<Bytes>,
    /// Whether the search for the oracle is part of it.
    pub oracle: bool,
    /// The laws.
    pub arms: Vec<Arm>,
    /// The guests that each arm has of its own.
    pub guests: Vec<GuestSpec>,
    /// A guest that loads those of all arms over the network, one after the other.
    pub client: Option<GuestSpec>,
    /// What they do.
    pub phases: Vec<Phase>,
    /// The file as it was read.
    pub text: String,
}

/// A guest.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct GuestSpec {
    /// Its name.
    pub name: String,
    /// With an empty balloon.
    #[serde(deserialize_with = "size")]
    pub memory: Bytes,
    /// Virtual CPUs.
    #[serde(default = "one")]
    pub vcpus: u32,
    /// No law goes below this.
    #[serde(default = "least", deserialize_with = "size")]
    pub min: Bytes,
    /// Compressed swap in its own memory.
    #[serde(default, deserialize_with = "maybe_size")]
    pub zram: Option<Bytes>,
    /// What it keeps under the arm `fixed`. Default: three fifths of its memory.
    #[serde(default, deserialize_with = "maybe_size")]
    pub fixed: Option<Bytes>,
    /// What it keeps under the arm `deflate-on-oom`. Default: its `min`.
    #[serde(default, deserialize_with = "maybe_size")]
    pub squeezed: Option<Bytes>,
}

/// Something that each arm does in its turn.
#[derive(Clone, Debug)]
pub struct Phase {
    /// For people.
    pub label: String,
    /// The guest's place among those of the arm.
    pub guest: usize,
    /// What.
    pub work: Work,
    /// Counts in ratios.
    pub measured: bool,
}

fn size<'de, D: Deserializer<'de>>(d: D) -> Result<Bytes, D::Error> {
    String::deserialize(d)?.parse().map_err(D::Error::custom)
}

fn maybe_size<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Bytes>, D::Error> {
    size(d).map(Some)
}

fn one() -> u32 {
    1
}

fn least() -> Bytes {
    LEAST
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    title: String,
    #[serde(default = "seed")]
    seed: u64,
    #[serde(default)]
    repetitions: Option<Spanned<u32>>,
    #[serde(default)]
    settle: Option<Spanned<String>>,
    patience: Option<Spanned<String>>,
    lasting: Option<Spanned<String>>,
    #[serde(default)]
    gap: Option<Spanned<String>>,
    #[serde(default)]
    budget: Option<Spanned<String>>,
    #[serde(default = "yes")]
    oracle: bool,
    arms: Spanned<Vec<Spanned<Arm>>>,
    guest: Vec<Spanned<GuestSpec>>,
    #[serde(default)]
    client: Option<Spanned<GuestSpec>>,
    phase: Vec<Spanned<RawPhase>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawPhase {
    #[serde(default)]
    label: Option<String>,
    #[serde(default)]
    guest: Option<Spanned<String>>,
    work: Spanned<Work>,
    #[serde(default)]
    measured: Option<bool>,
    #[serde(default)]
    times: Option<Spanned<u32>>,
}

fn seed() -> u64 {
    1
}

fn yes() -> bool {
    true
}

/// Where in a text something is.
struct Place<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Place<'_> {
    fn wrong(&self, at: usize, problem: impl Into<String>) -> ExperimentError {
        let before = &self.text.as_bytes()[..at.min(self.text.len())];
        let line = 1 + before.iter().filter(|&&b| b == b'\n').count();
        ExperimentError::Wrong { path: self.path.to_owned(), line, problem: problem.into() }
    }

    fn time(&self, value: Option<&Spanned<String>>, default: Duration) -> Result<Duration, ExperimentError> {
        let Some(value) = value else { return Ok(default) };
        humantime::parse_duration(value.get_ref()).map_err(|_| {
            let problem = format!("`{}` is not a time; write for example 20s or 500ms", value.get_ref());
            self.wrong(value.span().start, problem)
        })
    }
}

impl Place<'_> {
    fn budget(&self, value: Option<&Spanned<String>>) -> Result<Option<Bytes>, ExperimentError> {
        let read = |v: &Spanned<String>| {
            let size = v.get_ref().parse::<Bytes>();
            size.map_err(|e| self.wrong(v.span().start, format!("budget = \"{}\": {e}", v.get_ref())))
        };
        value.map(read).transpose()
    }
}

impl Experiment {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or something in it is wrong.
    pub fn read(path: &Path) -> Result<Self, ExperimentError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ExperimentError::Read { path: path.to_owned(), source })?;
        Self::parse(path, text)
    }

    /// Reads several files: those that can be used, and what is wrong with the others.
    #[must_use]
    pub fn read_all(paths: &[PathBuf]) -> (Vec<Self>, Vec<ExperimentError>) {
        let (mut experiments, mut wrong) = (Vec::new(), Vec::new());
        for path in paths {
            match Self::read(path) {
                Ok(experiment) => experiments.push(experiment),
                Err(e) => wrong.push(e),
            }
        }
        (experiments, wrong)
    }

    fn parse(path: &Path, text: String) -> Result<Self, ExperimentError> {
        let place = Place { path, text: &text };
        let file: File =
            toml::from_str(&text).map_err(|e| place.wrong(e.span().map_or(0, |s| s.start), e.message().trim()))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let settle = place.time(file.settle.as_ref(), Duration::from_secs(25))?;
        let gap = place.time(file.gap.as_ref(), Duration::from_millis(500))?;
        let patience = place.time(file.patience.as_ref(), Duration::from_secs(120))?;
        let lasting = file.lasting.is_some().then(|| place.time(file.lasting.as_ref(), Duration::ZERO)).transpose()?;
        let repetitions = file.repetitions.as_ref().map_or(1, |r| *r.get_ref());
        if repetitions == 0 {
            let at = file.repetitions.as_ref().map_or(0, |r| r.span().start);
            return Err(place.wrong(at, "repetitions = 0: nothing would be run"));
        }
        let arms = check_arms(&place, &file)?;
        let budget = place.budget(file.budget.as_ref())?;
        let guests = check_guests(&place, &file, budget)?;
        check_daemons(&place, &file, &guests, budget)?;
        let phases = check_phases(&place, &file, &guests)?;
        if arms.len() * guests.len() > MOST_GUESTS {
            let problem =
                format!("{} arms of {} guests each: at most {MOST_GUESTS} are alive at once", arms.len(), guests.len());
            return Err(place.wrong(file.arms.span().start, problem));
        }
        Ok(Self {
            name,
            title: file.title,
            seed: file.seed,
            repetitions,
            settle,
            gap,
            patience,
            lasting,
            budget,
            oracle: file.oracle,
            arms,
            guests,
            client: file.client.map(Spanned::into_inner),
            phases,
            text,
        })
    }

    /// Tells one text, one choice of arms and one making of programs and images from another: a block of another is not resumed.
    #[must_use]
    pub fn fingerprint(&self, made: &str) -> String {
        let mut hasher = DefaultHasher::new();
        self.text.hash(&mut hasher);
        format!("{:?}", self.arms).hash(&mut hasher);
        made.hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }

    /// The arms of the oracle's search: every guest kept at each of these sizes, beside `static`.
    #[must_use]
    pub fn at_sizes(&self, sizes: &[u64]) -> Self {
        let mut arms = vec![Arm::unmoved()];
        arms.extend(sizes.iter().map(|&mib| Arm::kept_at(Bytes::mib(mib))));
        // A fixed balloon is where it is told to be after two seconds; no law has to find its size.
        Self { arms, settle: self.settle.min(FIXED_SETTLES), ..self.clone() }
    }

    /// Leaves out all arms but these and `static`. Returns whether any of these is there.
    pub fn keep_arms(&mut self, names: &[String]) -> bool {
        self.arms.retain(|a| a.name == super::results::STATIC || names.contains(&a.name));
        self.arms.iter().any(|a| names.contains(&a.name))
    }

    /// The range in which the oracle is searched: the smallest guest decides.
    #[must_use]
    pub fn oracle_range(&self) -> (u64, u64) {
        let min = self.guests.iter().map(|g| g.min).min().unwrap_or(LEAST);
        let max = self.guests.iter().map(|g| g.memory).min().unwrap_or(LEAST);
        (min.as_mib(), max.as_mib())
    }
}

fn check_arms(place: &Place<'_>, file: &File) -> Result<Vec<Arm>, ExperimentError> {
    let arms = file.arms.get_ref();
    if arms.is_empty() {
        return Err(place.wrong(file.arms.span().start, "arms = []: nothing would be run"));
    }
    let mut names = BTreeSet::new();
    for arm in arms {
        if let Err(problem) = arm.get_ref().check() {
            return Err(place.wrong(arm.span().start, problem));
        }
        if !names.insert(&arm.get_ref().name) {
            let problem = format!("arm `{}` is there twice; give one of them another name", arm.get_ref().name);
            return Err(place.wrong(arm.span().start, problem));
        }
    }
    Ok(arms.iter().map(|a| a.get_ref().clone()).collect())
}

fn check_guests(place: &Place<'_>, file: &File, budget: Option<Bytes>) -> Result<Vec<GuestSpec>, ExperimentError> {
    let mut names = BTreeSet::new();
    for guest in file.guest.iter().chain(&file.client) {
        let at = guest.span().start;
        let guest = guest.get_ref();
        let fail = |problem: String| Err(place.wrong(at, problem));
        if !names.insert(&guest.name) {
            return fail(format!("guest `{}` is there twice", guest.name));
        }
        if guest.vcpus == 0 {
            return fail(format!("guest `{}`: vcpus = 0: at least 1", guest.name));
        }
        if guest.min < LEAST {
            return fail(format!("guest `{}`: min = {}: below {LEAST} its kernel has no room", guest.name, guest.min));
        }
        if guest.memory <= guest.min {
            return fail(format!("guest `{}`: memory {} is not above its min {}", guest.name, guest.memory, guest.min));
        }
        for (key, size) in [("fixed", guest.fixed), ("squeezed", guest.squeezed)] {
            if let Some(size) = size
                && (size < guest.min || size > guest.memory)
            {
                return fail(format!(
                    "guest `{}`: {key} = {size} is not within {} and {}",
                    guest.name, guest.min, guest.memory
                ));
            }
        }
    }
    if file.guest.is_empty() || file.phase.is_empty() {
        return Err(place.wrong(0, "at least one [[guest]] and one [[phase]] are needed"));
    }
    let guests: Vec<GuestSpec> = file.guest.iter().map(|g| g.get_ref().clone()).collect();
    let least = guests.iter().fold(Bytes::ZERO, |sum, g| sum + g.min);
    if let Some(budget) = budget.filter(|&b| b < least) {
        let at = file.budget.as_ref().map_or(0, |b| b.span().start);
        return Err(place.wrong(at, format!("budget = {budget}: the guests' minimums alone are {least}")));
    }
    Ok(guests)
}

/// What daemons and their probes need, before any of them is started.
fn check_daemons(
    place: &Place<'_>,
    file: &File,
    guests: &[GuestSpec],
    budget: Option<Bytes>,
) -> Result<(), ExperimentError> {
    let arms = file.arms.get_ref();
    let networked =
        file.client.is_some() || arms.iter().any(|a| a.get_ref().probes.is_some() && a.get_ref().law == Law::Sweep);
    for arm in arms.iter().filter(|a| a.get_ref().has_daemon()) {
        let at = arm.span().start;
        let arm = arm.get_ref();
        if arm.probes.is_some() && !networked {
            return Err(place.wrong(at, format!("arm `{}`: probes need a network: add a [client] guest", arm.name)));
        }
        // The daemon's own reader knows best what it takes.
        let vm = |guest: &GuestSpec| -> toml::Value {
            let max = format!("{}MiB", guest.memory.as_mib());
            let keys = [("name", guest.name.clone()), ("qmp", format!("/{}", guest.name)), ("max", max)];
            toml::Table::from_iter(keys.map(|(key, value)| (key.to_owned(), value.into()))).into()
        };
        let vms: Vec<toml::Value> = guests.iter().map(vm).collect();
        let config = block::config(arm, false, guests, budget, toml::Table::from_iter([("vm".to_owned(), vms.into())]));
        let read = |text: String| Config::parse(place.path, &text).map_err(|e| e.problem);
        if let Err(problem) = toml::to_string(&config).map_err(|e| e.to_string()).and_then(read) {
            return Err(place.wrong(at, format!("arm `{}`: ballast-host does not take it: {problem}", arm.name)));
        }
    }
    Ok(())
}

fn check_phases(place: &Place<'_>, file: &File, guests: &[GuestSpec]) -> Result<Vec<Phase>, ExperimentError> {
    let mut phases = Vec::new();
    for raw in &file.phase {
        let raw = raw.get_ref();
        let guest = match &raw.guest {
            None => 0,
            Some(name) => guests.iter().position(|g| g.name == *name.get_ref()).ok_or_else(|| {
                let known: Vec<&str> = guests.iter().map(|g| g.name.as_str()).collect();
                place.wrong(name.span().start, format!("no guest `{}`; there are {}", name.get_ref(), known.join(", ")))
            })?,
        };
        let work = raw.work.get_ref();
        if let Err(problem) = work.check(guests[guest].memory) {
            return Err(place.wrong(raw.work.span().start, format!("{}: {problem}", work.name())));
        }
        let phase = Phase {
            label: raw.label.clone().unwrap_or_else(|| work.name().to_owned()),
            guest,
            work: work.clone(),
            measured: raw.measured.unwrap_or(!matches!(work, Work::Rest { .. } | Work::Age { .. })),
        };
        let times = raw.times.as_ref().map_or(1, |t| *t.get_ref());
        if times == 0 {
            let at = raw.times.as_ref().map_or(0, |t| t.span().start);
            return Err(place.wrong(at, "times = 0: nothing would be run"));
        }
        phases.extend(std::iter::repeat_n(phase, times as usize));
    }
    Ok(phases)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"title = "t"
arms = ["static", "mom", { name = "bare", law = "ballast", settings = { headroom = "32MiB" } }]
budget = "448MiB"
[[guest]]
name = "a"
memory = "512MiB"
[[phase]]
work = { do = "rest", secs = 1 }
times = 2
"#;

    fn read(text: &str) -> Result<Experiment, ExperimentError> {
        Experiment::parse(Path::new("x.toml"), text.to_owned())
    }

    /// What is said of the good file with one piece of it replaced.
    fn said(piece: &str, by: &str) -> String {
        assert!(GOOD.contains(piece), "{piece}");
        let text = GOOD.replacen(piece, by, 1);
        read(&text).expect_err(&text).to_string()
    }

    #[test]
    fn a_good_file_is_what_it_says() {
        let e = read(GOOD).unwrap();
        assert_eq!((e.name.as_str(), e.phases.len(), e.arms.len(), e.repetitions), ("x", 2, 3, 1));
        assert_eq!(e.arms[1].law, Law::Host("mom".into()));
        assert!(!e.arms[1].reporting && !e.arms[1].has_agent());
        assert!(!e.arms[2].reporting && e.arms[2].has_agent());
        assert_eq!(e.guests[0].min, LEAST);
        assert!(!e.phases[0].measured, "a rest has no throughput");
    }

    #[test]
    fn wrong_files_are_named_with_file_and_line() {
        for (piece, by, line, word) in [
            ("title", "titel", 1, "titel"),
            ("\"mom\"", "\"moom\"", 2, "there is no law `moom`"),
            ("\"mom\"", "\"static\"", 2, "twice"),
            ("\"mom\"", "{ name = \"a b\", law = \"mom\" }", 2, "names files"),
            ("\"mom\"", "{ name = \"m\", law = \"mom\", absorber = true }", 2, "absorb"),
            ("\"mom\"", "{ name = \"s\", law = \"static\", settings = { a = 1 } }", 2, "no settings"),
            ("\"mom\"", "7", 2, "an arm is a name"),
            ("\"mom\"", "{ name = \"m\", law = \"mom\", settings = { bogus = 1 } }", 2, "bogus"),
            ("headroom = \"32MiB\"", "headroom = \"some\"", 2, "some"),
            ("headroom = \"32MiB\"", "headrom = \"32MiB\"", 2, "headrom"),
            ("\"mom\"", "{ name = \"mom\", probes = true }", 2, "[client]"),
            ("\"mom\"", "{ name = \"mom\", probes = \"1s\" }", 2, "[client]"),
            (
                "\"mom\"",
                "{ name = \"mom\", probes = \"20ms\" }",
                2,
                "probes every 20.0 ms are too many; at least 1.0 s",
            ),
            (
                "\"mom\"",
                "{ name = \"mom\", probes = \"often\" }",
                2,
                "probes = \"often\": write true, for one every 10.0 s",
            ),
            ("\"mom\"", "{ name = \"mom\", probes = 1 }", 2, "probes = 1: write true"),
            ("do = \"rest\", secs = 1", "do = \"nginx\", secs = 1, files = 0", 8, "1 to 2048"),
            ("do = \"rest\", secs = 1", "do = \"nginx\", secs = 1, files = 2049", 8, "1 to 2048"),
            ("do = \"rest\", secs = 1", "do = \"redis-fill\", mib = 1, bytes = 0", 8, "a value of 0 bytes"),
            (
                "do = \"rest\", secs = 1",
                "do = \"redis-load\", requests = 1, keyspace = 1, bytes = 1048577",
                8,
                "1 to 1048576",
            ),
            ("do = \"rest\", secs = 1", "do = \"jvm\", live_mib = 9, heap_mib = 512, secs = 1", 8, "512 MiB"),
            ("do = \"rest\", secs = 1", "do = \"jvm\", live_mib = 100, heap_mib = 130, secs = 1", 8, "a third"),
            ("\"448MiB\"", "\"64MiB\"", 3, "minimums alone are"),
            ("\"448MiB\"", "\"many\"", 3, "budget"),
            ("memory = \"512MiB\"", "memory = \"512\"", 6, "512"),
            ("memory = \"512MiB\"", "memory = \"80MiB\"", 4, "not above its min"),
            ("memory = \"512MiB\"", "memory = \"512MiB\"\nmin = \"8MiB\"", 4, "no room"),
            ("memory = \"512MiB\"", "memory = \"512MiB\"\nfixed = \"1GiB\"", 4, "not within"),
            ("memory = \"512MiB\"", "memory = \"512MiB\"\nvcpus = 0", 4, "at least 1"),
            ("memory = \"512MiB\"", "memory = \"512MiB\"\nmemry = 1", 7, "memry"),
            ("[[phase]]", "[[phase]]\nguest = \"b\"", 8, "no guest `b`; there are a"),
            ("\"rest\"", "\"sleep\"", 8, "sleep"),
            ("budget", "settle = \"soon\"\nbudget", 3, "not a time"),
            ("budget", "lasting = \"long\"\nbudget", 3, "not a time"),
            ("budget", "repetitions = 0\nbudget", 3, "nothing would be run"),
            ("times = 2", "times = 0", 9, "nothing would be run"),
            (
                "\"static\", \"mom\", { name = \"bare\", law = \"ballast\", settings = { headroom = \"32MiB\" } }",
                "",
                2,
                "nothing",
            ),
            ("[[phase]]\nwork = { do = \"rest\", secs = 1 }\ntimes = 2\n", "", 1, "missing field `phase`"),
            ("[[phase]]", "[[guest]]\nname = \"a\"\nmemory = \"512MiB\"\n[[phase]]", 7, "twice"),
        ] {
            let said = said(piece, by);
            assert!(said.starts_with(&format!("x.toml:{line}: ")), "{by}: {said}");
            assert!(said.contains(word), "{by}: {said}");
        }
    }

    #[test]
    fn a_wrong_file_does_not_keep_the_others_from_being_run() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let (good, wrong) = (file("good.toml", GOOD), file("wrong.toml", &GOOD.replace("\"mom\"", "\"moom\"")));
        let missing = folder.path().join("missing.toml");
        let (read, said) = Experiment::read_all(&[wrong, good, missing]);
        assert_eq!((read.len(), read[0].name.as_str(), said.len()), (1, "good", 2));
        assert!(said[0].to_string().contains("wrong.toml:2: "), "{}", said[0]);
        assert!(said[1].to_string().contains("missing.toml"), "{}", said[1]);
    }

    #[test]
    fn the_files_that_come_with_the_sources_are_good() {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments");
        let files = [shipped.clone(), shipped.join("collect")].map(|folder| std::fs::read_dir(folder).unwrap());
        let files: Vec<PathBuf> = files.into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
        let files: Vec<PathBuf> = files.into_iter().filter(|f| f.extension().is_some_and(|e| e == "toml")).collect();
        let (read, wrong) = Experiment::read_all(&files);
        assert!(wrong.is_empty() && read.len() > 20, "{wrong:?}");
    }

    #[test]
    fn another_text_is_another_experiment() {
        let (one, other) = (read(GOOD).unwrap(), read(&GOOD.replace("448", "449")).unwrap());
        assert_eq!(one.fingerprint("a"), read(GOOD).unwrap().fingerprint("a"));
        assert_ne!(one.fingerprint("a"), other.fingerprint("a"));
        assert_ne!(one.fingerprint("a"), one.fingerprint("b"), "made by another daemon");
        let mut fewer = read(GOOD).unwrap();
        assert!(fewer.keep_arms(&["mom".into()]));
        assert_ne!(one.fingerprint("a"), fewer.fingerprint("a"), "a block of fewer arms is not whole");
    }

    #[test]
    fn an_oracle_search_has_its_sizes_beside_static() {
        let e = read(GOOD).unwrap().at_sizes(&[128, 256]);
        let names: Vec<&str> = e.arms.iter().map(|a| a.name.as_str()).collect();
        assert_eq!(names, ["static", "fixed@128", "fixed@256"]);
        assert_eq!(read(GOOD).unwrap().oracle_range(), (96, 512));
    }

    #[test]
    fn arms_that_are_not_there_cannot_be_kept() {
        let mut e = read(GOOD).unwrap();
        assert!(e.keep_arms(&["bare".into(), "drs".into()]));
        assert_eq!(e.arms.len(), 2);
        assert!(!e.keep_arms(&["drs".into()]), "only static is left");
    }
}
