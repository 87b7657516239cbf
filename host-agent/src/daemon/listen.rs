//! What the daemon listens at without needing it: metrics and the page, and the hybrid vsock of each VM. Where one cannot be had the
//! daemon serves all the same, and tries again.

use super::{Daemon, Event};
use crate::config::{self, Address, Config};
use crate::transport::{self, Listener};
use crate::web;
use ballast_planner::VmName;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use tokio::sync::mpsc;
use tokio::time::Duration;

/// Between attempts to serve metrics where somebody else was.
const WEB_PAUSE: Duration = Duration::from_secs(10);
/// And to listen at hybrid vsocks that could not be had.
pub(super) const PAUSE: Duration = Duration::from_secs(10);

impl Daemon {
    /// Listens at the hybrid vsocks that could not be had before, where they can be now.
    pub(super) async fn listen_again(&mut self) {
        for vm in std::mem::take(&mut self.unheard).into_keys() {
            let configured = self.config.vms.iter().find(|v| v.name == vm);
            let Some(Address::Hybrid(path)) = configured.and_then(|v| v.agent.clone()) else { continue };
            match self.listener.add_at_once(vm.clone(), path).await {
                Ok(()) => tracing::info!(%vm, "its agent can call now"),
                Err(error) => drop(self.unheard.insert(vm, cannot_call(&error))),
            }
        }
    }
}

/// Metrics and the status page, now or as soon as they can be had. No VM waits for them.
pub(super) async fn serve_now_or_later(settings: &config::Metrics, events: &mpsc::Sender<Event>) -> Option<SocketAddr> {
    let error = match web::serve(settings, events.clone()).await {
        Ok(address) => return Some(address),
        Err(error) => error,
    };
    tracing::warn!(error = %crate::chain(&error), "tried again every {} s", WEB_PAUSE.as_secs());
    let (settings, events) = (settings.clone(), events.clone());
    tokio::spawn(async move {
        while !events.is_closed() {
            tokio::time::sleep(WEB_PAUSE).await;
            if let Ok(address) = web::serve(&settings, events.clone()).await {
                tracing::info!(page = %format!("http://{address}/"), "metrics and status page are served now");
                return;
            }
        }
    });
    None
}

/// Listens at the hybrid vsock of each VM, and says which cannot be had, and why. That is such a VM's trouble, unless it is
/// so for all VMs there are, because another daemon serves them: two would undo each other's orders.
pub(super) async fn for_all(
    listener: &mut Listener,
    config: &Config,
) -> Result<BTreeMap<VmName, String>, transport::Error> {
    let mut failed = Vec::new();
    for vm in &config.vms {
        let Some(Address::Hybrid(path)) = &vm.agent else { continue };
        if let Err(error) = listener.add(vm.name.clone(), path.clone()).await {
            failed.push((vm.name.clone(), error));
        }
    }
    let occupied = failed.iter().filter(|(_, e)| matches!(e, transport::Error::Occupied { .. })).count();
    if config.libvirt.is_none() && occupied > 0 && occupied == config.vms.len() {
        return Err(failed.swap_remove(0).1);
    }
    let unheard: BTreeMap<VmName, String> = failed.into_iter().map(|(vm, error)| (vm, cannot_call(&error))).collect();
    for problem in unheard.values() {
        tracing::warn!("{problem}");
    }
    Ok(unheard)
}

/// What it means that a hybrid vsock cannot be had.
pub(super) fn cannot_call(error: &transport::Error) -> String {
    format!("{}; its agent cannot call (tried again every {} s)", crate::chain(error), PAUSE.as_secs())
}
