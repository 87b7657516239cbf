//! One task per VM between the planner and the hypervisor: one call in flight, the newest target wins (promise P4).
//!
//! Hypervisor calls block, so each runs on a blocking thread with the hypervisor's own deadline; a VM whose
//! QEMU hangs holds up nobody else (promise P6; behind a shared libvirtd by `hypervisor/libvirt/runner.rs`).

use crate::clock::Clock;
use crate::daemon::Event;
use crate::hypervisor::{self, Hypervisor};
use ballast_planner::{BalloonTarget, Input, LawName, Pace, Statistics, VmName};
use ballast_protocol::{Bytes, Micros};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant, sleep_until};

/// Which VMs' balloon statistics are read, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Polling {
    every: Duration,
    /// Also of VMs with an agent.
    always: bool,
}

impl Polling {
    /// What a law needs. Ours looks at VMs without an agent every five seconds. The others have nothing else, from any
    /// VM; two seconds are the shortest of their published rounds, and QEMU's guests answer in one.
    #[must_use]
    pub const fn under(law: LawName) -> Self {
        match law {
            LawName::Ballast => Self { every: Duration::from_secs(5), always: false },
            _ => Self { every: Duration::from_secs(2), always: true },
        }
    }
}

/// A look is not repeated before it has rested for so many times what it took. A thousand balloons that move at once,
/// each looked at every 25 ms, would ask for 40,000 looks a second, and orders would wait behind them.
const REST: u32 = 20;

/// What an actuator is told.
#[derive(Debug)]
pub enum Command {
    /// Set the balloon.
    Order {
        /// The planner's number.
        order: u64,
        /// What the guest keeps.
        target: BalloonTarget,
        /// How fast; `None`: at once.
        pace: Option<Pace>,
    },
    /// Read the balloon's size this often.
    Watch(Micros),
    /// Another law rules, which needs other statistics.
    Polling(Polling),
    /// Whether an agent reports; without one the balloon's statistics are read.
    Agent(bool),
    /// Carry out what is left, then end.
    Finish,
}

/// Runs until told to finish or nobody is left to tell it anything.
pub async fn run(
    vm: VmName,
    hypervisor: Arc<dyn Hypervisor>,
    mut commands: mpsc::UnboundedReceiver<Command>,
    events: mpsc::Sender<Event>,
    clock: Clock,
    mut polling: Polling,
) {
    let mut state = Actuator { vm, hypervisor, events, clock, told: None, reachable: true };
    let mut every = Duration::from_secs(1);
    // All VMs are found at once when the daemon starts: their looks are spread over the second by their names.
    let mut next_look = Instant::now() + every.mul_f64(spread(&state.vm));
    let mut next_statistics = Some(next_look);
    let mut has_agent = false;
    let mut pieces: Option<Pieces> = None;
    loop {
        let piece_at = pieces.as_ref().map_or_else(Instant::now, |p| p.next);
        let statistics_at = next_statistics.unwrap_or_else(|| Instant::now() + polling.every);
        tokio::select! {
            biased;
            command = commands.recv() => {
                let mut newest = None;
                let mut finish = false;
                let mut next = command;
                loop {
                    match next {
                        None | Some(Command::Finish) => finish = true,
                        Some(Command::Order { order, target, pace }) => newest = Some((order, target, pace)),
                        Some(Command::Watch(interval)) => {
                            every = interval.duration();
                            next_look = next_look.min(Instant::now() + every);
                        }
                        Some(Command::Polling(other)) => {
                            polling = other;
                            next_statistics = (!has_agent || polling.always).then(Instant::now);
                        }
                        Some(Command::Agent(alive)) => {
                            has_agent = alive;
                            next_statistics = (!alive || polling.always).then(Instant::now);
                        }
                    }
                    match commands.try_recv() {
                        Ok(more) => next = Some(more),
                        Err(_) => break,
                    }
                }
                if let Some((order, target, pace)) = newest {
                    pieces = pace.map(|pace| Pieces::new(order, pace, target, pieces.as_ref()));
                    let size = pieces.as_ref().map_or(target.bytes(), |p| p.sent);
                    if !state.order(order, size).await {
                        pieces = None;
                    }
                    next_look = Instant::now() + every;
                }
                if finish {
                    // Nobody is there to send the rest piece by piece.
                    if let Some(left) = pieces {
                        state.piece(left.order, left.target).await;
                    }
                    return;
                }
            }
            () = sleep_until(piece_at), if pieces.is_some() => {
                if let Some(due) = &mut pieces {
                    let (order, size) = (due.order, due.piece());
                    if !state.piece(order, size).await || due.is_whole() {
                        pieces = None;
                    }
                }
            }
            () = sleep_until(next_look) => {
                let begun = Instant::now();
                state.look().await;
                // While the hypervisor is away, asking often helps nobody.
                let rest = every.max(begun.elapsed() * REST);
                next_look = Instant::now() + if state.reachable { rest } else { Duration::from_secs(1) };
            }
            () = sleep_until(statistics_at), if next_statistics.is_some() => {
                state.statistics().await;
                next_statistics = Some(Instant::now() + polling.every);
            }
        }
    }
}

/// A part of one that is each name's own.
fn spread(vm: &VmName) -> f64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    vm.hash(&mut hasher);
    f64::from(hasher.finish() as u16) / f64::from(u16::MAX)
}

/// A giving of which a part is still to come.
struct Pieces {
    order: u64,
    pace: Pace,
    target: Bytes,
    sent: Bytes,
    next: Instant,
}

impl Pieces {
    /// What an earlier giving has sent already is not taken back.
    fn new(order: u64, pace: Pace, target: BalloonTarget, earlier: Option<&Self>) -> Self {
        let target = target.bytes();
        let sent = earlier.map_or(pace.first, |e| e.sent.max(pace.first)).min(target);
        Self { order, pace, target, sent, next: Instant::now() + Pace::EVERY.duration() }
    }

    /// The size that is due now.
    fn piece(&mut self) -> Bytes {
        self.sent = self.pace.next(self.sent, self.target);
        self.next = Instant::now() + Pace::EVERY.duration();
        self.sent
    }

    fn is_whole(&self) -> bool {
        self.sent >= self.target
    }
}

struct Actuator {
    vm: VmName,
    hypervisor: Arc<dyn Hypervisor>,
    events: mpsc::Sender<Event>,
    clock: Clock,
    /// The size last told to the planner; `None`: tell it again even if it is the same.
    told: Option<Bytes>,
    reachable: bool,
}

impl Actuator {
    async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Hypervisor, &VmName) -> Result<T, hypervisor::Error> + Send + 'static,
    ) -> Result<T, String> {
        let (hypervisor, name) = (Arc::clone(&self.hypervisor), self.vm.clone());
        match tokio::task::spawn_blocking(move || call(&*hypervisor, &name)).await {
            Ok(result) => result.map_err(|e| crate::chain(&e)),
            Err(panic) => Err(format!("the hypervisor's client panicked: {panic}")),
        }
    }

    async fn tell(&self, input: Input) {
        // The daemon closes this channel only when it has stopped listening for good.
        let _ = self.events.send(Event::Input(input)).await;
    }

    /// Returns whether it was accepted.
    async fn order(&mut self, order: u64, size: Bytes) -> bool {
        let begun = self.clock.now();
        let result = self.call(move |h, vm| h.order(vm, size)).await;
        let took = self.clock.now() - begun;
        let _ = self.events.send(Event::Issued { vm: self.vm.clone(), order, at: begun, took }).await;
        self.told = None;
        let accepted = result.is_ok();
        self.tell(Input::Ordered { vm: self.vm.clone(), order, error: result.err() }).await;
        accepted
    }

    /// Another piece of an order. Returns whether it was accepted; an order of which a piece is refused is refused.
    async fn piece(&mut self, order: u64, size: Bytes) -> bool {
        let result = self.call(move |h, vm| h.order(vm, size)).await;
        self.told = None;
        let accepted = result.is_ok();
        if let Err(error) = result {
            self.tell(Input::Ordered { vm: self.vm.clone(), order, error: Some(error) }).await;
        }
        accepted
    }

    async fn look(&mut self) {
        match self.call(|h, vm| h.balloon(vm)).await {
            Ok(actual) => {
                if !self.reachable {
                    self.reachable = true;
                    let _ = self.events.send(Event::Rediscover(self.vm.clone())).await;
                }
                if self.told != Some(actual) {
                    self.told = Some(actual);
                    self.tell(Input::Balloon { vm: self.vm.clone(), actual }).await;
                }
            }
            Err(error) if self.reachable => {
                tracing::warn!(vm = %self.vm, %error, "the hypervisor does not answer");
                self.reachable = false;
                self.told = None;
                self.tell(Input::HypervisorLost { vm: self.vm.clone() }).await;
                let _ = self.events.send(Event::Rediscover(self.vm.clone())).await;
            }
            Err(_) => {}
        }
    }

    async fn statistics(&mut self) {
        if !self.reachable {
            return;
        }
        match self.call(|h, vm| h.statistics(vm)).await {
            Ok(s) => {
                let statistics = Statistics {
                    free: s.free,
                    available: s.available,
                    total: s.total,
                    swap_in: s.swap_in,
                    age: s.age.unwrap_or(Micros::MAX),
                };
                self.tell(Input::Statistics { vm: self.vm.clone(), statistics }).await;
            }
            // A VM without statistics is an ordinary thing, and `look` reports a hypervisor that is gone.
            Err(error) => tracing::debug!(vm = %self.vm, %error, "no balloon statistics"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::{BalloonStatistics, VmFacts};
    use ballast_planner::{Action, Facts, Input, Planner, VmSettings};
    use std::sync::Mutex;

    /// Notes the sizes it is told, and refuses all beyond `most`.
    #[derive(Debug)]
    struct Told {
        sizes: Mutex<Vec<u64>>,
        most: Bytes,
    }

    impl Hypervisor for Told {
        fn vms(&self) -> Result<Vec<VmFacts>, hypervisor::Error> {
            Ok(Vec::new())
        }
        fn facts(&self, vm: &VmName) -> Result<VmFacts, hypervisor::Error> {
            Err(hypervisor::Error::UnknownVm(vm.clone()))
        }
        fn balloon(&self, _: &VmName) -> Result<Bytes, hypervisor::Error> {
            Ok(Bytes::mib(100))
        }
        fn order(&self, vm: &VmName, keep: Bytes) -> Result<(), hypervisor::Error> {
            self.sizes.lock().unwrap().push(keep.as_mib());
            if keep <= self.most { Ok(()) } else { Err(hypervisor::Error::UnknownVm(vm.clone())) }
        }
        fn statistics(&self, vm: &VmName) -> Result<BalloonStatistics, hypervisor::Error> {
            Err(hypervisor::Error::UnknownVm(vm.clone()))
        }
    }

    /// A target that only a planner can make: the VM is found like this.
    fn target(size: Bytes) -> BalloonTarget {
        let mut planner = Planner::new();
        let facts =
            Facts { max: Bytes::mib(512), actual: size, running: true, balloon: true, deflate_on_oom: Some(true) };
        let input = Input::Vm { vm: VmName::from("a"), facts, settings: VmSettings::default() };
        planner.handle(Micros::secs(1), input);
        planner.handle(Micros::secs(1), Input::Balloon { vm: VmName::from("a"), actual: size });
        std::iter::from_fn(|| planner.poll_action())
            .find_map(|a| if let Action::Order { target, .. } = a { Some(target) } else { None })
            .expect("adopted by an order")
    }

    /// What the hypervisor is told, and which orders fail.
    async fn told(most: Bytes, commands: Vec<(Command, u64)>) -> (Vec<u64>, Vec<u64>) {
        let hypervisor = Arc::new(Told { sizes: Mutex::new(Vec::new()), most });
        let (to, from) = mpsc::unbounded_channel();
        let (events, mut heard) = mpsc::channel(1_000);
        let task = tokio::spawn(run(
            VmName::from("a"),
            Arc::clone(&hypervisor) as Arc<dyn Hypervisor>,
            from,
            events,
            Clock::start(),
            Polling::under(LawName::Ballast),
        ));
        for (command, pause) in commands {
            to.send(command).unwrap();
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        to.send(Command::Finish).unwrap();
        task.await.unwrap();
        let mut failed = Vec::new();
        while let Ok(event) = heard.try_recv() {
            if let Event::Input(Input::Ordered { order, error: Some(_), .. }) = event {
                failed.push(order);
            }
        }
        let sizes = hypervisor.sizes.lock().unwrap().clone();
        (sizes, failed)
    }

    fn give(order: u64, to: u64, first: u64) -> Command {
        let pace = Pace { first: Bytes::mib(first), rate: Bytes::mib(1_000) };
        Command::Order { order, target: target(Bytes::mib(to)), pace: Some(pace) }
    }

    fn at_once(order: u64, to: u64) -> Command {
        Command::Order { order, target: target(Bytes::mib(to)), pace: None }
    }

    #[tokio::test]
    async fn a_giving_comes_in_pieces_up_to_its_target() {
        let (sizes, failed) = told(Bytes::MAX, vec![(give(1, 150, 116), 2_000)]).await;
        assert_eq!(sizes, [116, 126, 136, 146, 150]);
        assert_eq!(failed, [0; 0]);
    }

    #[tokio::test]
    async fn the_newest_order_ends_the_pieces_of_the_one_before() {
        // Taken back before the first giving is whole.
        let (sizes, _) = told(Bytes::MAX, vec![(give(1, 512, 116), 0), (at_once(2, 90), 300)]).await;
        assert_eq!(sizes.last(), Some(&90), "{sizes:?}");
        // A giving on top of one goes on from where that was, not from its own beginning.
        let (sizes, _) = told(Bytes::MAX, vec![(give(1, 200, 180), 0), (give(2, 220, 116), 2_000)]).await;
        assert!(sizes.is_sorted(), "{sizes:?}");
        assert_eq!(sizes.last(), Some(&220), "{sizes:?}");
    }

    #[tokio::test]
    async fn what_is_left_of_a_giving_is_given_at_the_end() {
        let (sizes, _) = told(Bytes::MAX, vec![(give(1, 512, 116), 0)]).await;
        assert_eq!(sizes.last(), Some(&512), "{sizes:?}");
        assert!(sizes.len() < 40, "not piece by piece: {sizes:?}");
    }

    #[tokio::test]
    async fn an_order_of_which_a_piece_is_refused_is_refused_once() {
        let (sizes, failed) = told(Bytes::mib(130), vec![(give(7, 512, 116), 500)]).await;
        assert_eq!(sizes, [116, 126, 136]);
        assert_eq!(failed, [7]);
    }
}
