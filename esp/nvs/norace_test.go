//go:build !race

package nvs

const raceEnabled = false
