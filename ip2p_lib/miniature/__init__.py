"""The miniature world: pictures whose every edit has a known exact answer."""
