package quarklinktest_test

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"time"

	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/quarklinktest"
)

// A harness for a device: an instance, a batch, and an image that is due.
func Example() {
	ctx := context.Background()
	instance, err := quarklinktest.NewServer(quarklinktest.Options{InMemory: true})
	if err != nil {
		log.Fatal(err)
	}
	defer instance.Close()

	firmware, err := image.Minimal(image.ESP32C3, image.App{Project: "blinky", Version: "1.8.1"})
	if err != nil {
		log.Fatal(err)
	}
	err = instance.AddBatch(quarklinktest.Batch{
		Name:     "My_MQTT_Batch",
		Policy:   quarklinktest.Policy{Lifetime: 30 * 24 * time.Hour},
		Firmware: &quarklinktest.Firmware{Image: bytes.NewReader(firmware)},
	})
	if err != nil {
		log.Fatal(err)
	}

	device, err := instance.NewDevice(ctx, "My_MQTT_Batch")
	if err != nil {
		log.Fatal(err)
	}
	defer device.Close()
	enrolment, err := device.Enrol(ctx)
	if err != nil {
		log.Fatal(err)
	}
	status, err := device.Status(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("hub:", enrolment.Hub.Endpoint)
	fmt.Println("state:", status.State)
	fmt.Println("due:", status.Firmware.Name, status.Firmware.Version, "for", status.Firmware.Attributes["chip"])
	fmt.Println("certificates:", len(instance.Certificates(device.DeviceID())))
	fmt.Println("handshakes:", instance.Stats().Handshakes)
	// Output:
	// hub: instance.test
	// state: enrolled
	// due: blinky 1.8.1 for esp32c3
	// certificates: 1
	// handshakes: 3
}
