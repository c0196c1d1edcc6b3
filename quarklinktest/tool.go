package quarklinktest

import (
	"context"
	"crypto/rand"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/transport/uart"
)

// NewTool returns a provisioning tool that gives devices the Server's instance
// and the Wi-Fi (one without an SSID is refused to them), and adds each device
// that sends its DeviceID to the batch. A device that cannot be added is told
// "ERROR refused". A device that asks for a tunnel is carried to the Server.
//
// Its Serve answers one device at one port, one end of a [Pipe] for example; it
// may run for several at a time. The fields of the tool can be changed before.
func NewTool(s *Server, batch string, wifi quarklink.Network) *uart.Tool {
	i := s.Instance()
	return &uart.Tool{
		Endpoint: i.Endpoint,
		Port:     i.Port,
		RootCA:   i.Root.Raw,
		SSID:     wifi.SSID,
		Password: uart.Secret(wifi.Password),
		Instance: s.Carrier(),
		Random:   rand.Reader,
		OnDeviceID: func(_ context.Context, id string) error {
			return s.AddDevices(batch, quarklink.DeviceID(id))
		},
	}
}
