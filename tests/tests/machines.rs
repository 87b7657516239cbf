//! Real machines: that they boot, clone, can be commanded and measured, and leave nothing behind.

use ballast_tests::Machine;
use std::time::Instant;

#[test]
fn a_guest_boots_and_takes_commands() {
    let begun = Instant::now();
    let machine = Machine::builder("boots").without_vsock().boot().unwrap();
    println!("booted in {:?}", begun.elapsed());
    let before = machine.resident().unwrap();
    let burst = machine.guest.burst(100).unwrap();
    println!("{burst:?}; resident {before} then {}", machine.resident().unwrap());
    assert_eq!(burst.touched_mib, 100);
}
