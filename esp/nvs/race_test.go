//go:build race

package nvs

// RaceEnabled makes the tests that cut the power smaller.
const RaceEnabled = true
