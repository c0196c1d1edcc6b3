// Package flash is serial NOR flash as ESP32 chips have it, for all packages that
// work on it: one interface, [NOR], and what implements it: a chip's flash behind
// three functions of ESP-IDF, [Memory], a [File] with a dump, a [Region] of
// another flash and, on Linux, an MTD character device ([OpenMTD]).
//
// NOR flash clears bits when it is programmed and sets them only by erasing a
// whole sector. What is written over without an erase becomes the AND of old and
// new, and every implementation here behaves like that, so that a mistake shows
// before it reaches a chip.
//
// Package flashtest has a model with power cuts, wear and defects.
package flash
