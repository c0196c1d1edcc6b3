// Package ota puts an update into an ESP32's flash: a [Slot] is the inactive OTA
// partition, a [Trial] is the time until a new application has confirmed itself.
// They satisfy quarklink's interfaces of these names by shape.
//
// A Slot never touches the application that runs, nor, while that one is on trial,
// the one to which a failed trial goes back. It erases each sector when a write
// reaches it, reads back what it writes, and makes the image the one that starts
// next only after it has verified it. A power cut at any instant leaves a device
// that starts the old application or the new one.
//
// # Trials
//
// With a bootloader that rolls back (CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE) otadata
// says whether the application that runs is on trial, and the bootloader goes back by
// itself if it restarts without having confirmed itself.
//
// QuarkLink's own projects leave that off. Then states stay UNDEFINED, nothing in
// flash says that there is a trial, and the bootloader starts the new application
// again and again. Whether it is on trial is what the application has recorded:
// [Config].OnTrial. It must look at its record, and count its starts, as early as it
// can. Nobody catches what happens before that: a crash or a hang in start-up code,
// in a constructor or in a driver's initialisation, one that comes before the record
// can be read, and a brown-out that always comes at the same place. Such a device
// starts, crashes and starts again until somebody reflashes it. A watchdog changes
// nothing, as it only restarts. An image that does not verify is passed over by
// either bootloader.
package ota
