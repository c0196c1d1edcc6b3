package est

import (
	"context"
	"fmt"
	"os"
)

// The client here is of a server that gives a recorded answer.
func Example() {
	answer, err := os.ReadFile("testdata/gs-cacerts.http")
	if err != nil {
		fmt.Println(err)
		return
	}
	client := replay(answer).client()

	cacerts, err := client.CACerts(context.Background())
	if err != nil {
		fmt.Println(err)
		return
	}
	issuing := cacerts[0] // stands for a certificate that was enrolled
	path, err := Chain(issuing, cacerts, client.Now())
	fmt.Println(issuing.Subject, len(path.Chain), err)
	// Output: CN=Lab Issuing CA,O=Lab 0 <nil>
}
