use super::*;

fn points(value: impl Fn(f64) -> f64) -> Vec<Point> {
    let names = JUDGED.iter().map(|(name, _)| (*name).to_owned());
    let names: Vec<String> = names.collect();
    (0..60)
        .map(f64::from)
        .map(|x| Point { x, values: names.iter().map(|name| (name.clone(), value(x))).collect() })
        .collect()
}

#[test]
fn growth_is_named_with_its_numbers() {
    let mut notes = Vec::new();
    assert_eq!(grown(&points(|_| 20.0), &mut notes), [""; 0]);
    assert!(notes.iter().all(|note| note.contains("flat")), "{notes:?}");
    notes.clear();
    let found = grown(&points(|x| 20.0 + x), &mut notes);
    assert!(found.contains(&"descriptors") && !found.contains(&"private_dirty_bytes"), "{found:?}");
    assert!(notes[0].contains("grows: 60.0 a minute"), "{notes:?}");
}

#[test]
fn what_is_not_given_back_is_named() {
    let samples = |n: f64| Samples::from([("descriptors".to_owned(), n)]);
    let mut notes = Vec::new();
    assert_eq!(left(&samples(14.0), &samples(14.0), &mut notes), [""; 0]);
    assert_eq!(left(&samples(14.0), &samples(15.0), &mut notes), ["descriptors"]);
    assert!(notes[0].contains("14 before"), "{notes:?}");
}
