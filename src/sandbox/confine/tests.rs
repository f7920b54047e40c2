use super::*;

#[test]
fn another_thread_is_noticed() {
    let (keep, until) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || until.recv());
    assert!(other_threads() > 0);
    drop(keep);
    assert!(thread.join().expect("no panic").is_err());
}
