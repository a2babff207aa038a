package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/lightninglabs/aperture/l402"
	"github.com/lightninglabs/lndclient"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop/grpc_testing"
)

// How many bytes are asked for in each answer.
var sizes = []int32{7, 70, 700}

// What came of calling with the interceptor.
type called struct {
	// What the server sent, in bytes: the first call, and another one.
	First, Second int
	// The same over a stream for each answer: from a server that is asked once, and in a conversation.
	Streamed, Conversed []int
	// What another process with the same store gets.
	Later int
	// What a stream gets that comes before anything is bought, by an interceptor that could buy.
	StreamBeforePaying string
	// What the store says.
	Hash, Preimage string
	PaidMsat       uint64
}

func overGRPC(ctx context.Context, at *places, lnd *lndclient.LndServices) (any, error) {
	store, err := l402.NewFileStore(at.store)
	if err != nil {
		return nil, err
	}
	client, err := dial(at, lnd, store)
	if err != nil {
		return nil, err
	}
	var did called
	if _, err := streamed(ctx, client); err == nil {
		return nil, errors.New("nothing was paid, and everything sent")
	} else {
		did.StreamBeforePaying = err.Error()
	}
	if did.First, err = unary(ctx, client); err != nil {
		return nil, fmt.Errorf("the call that pays: %w", err)
	}
	if did.Second, err = unary(ctx, client); err != nil {
		return nil, fmt.Errorf("the second call: %w", err)
	}
	if did.Streamed, err = streamed(ctx, client); err != nil {
		return nil, fmt.Errorf("the stream: %w", err)
	}
	if did.Conversed, err = conversed(ctx, client); err != nil {
		return nil, fmt.Errorf("the conversation: %w", err)
	}

	reopened, err := l402.NewFileStore(at.store)
	if err != nil {
		return nil, err
	}
	if client, err = dial(at, lnd, reopened); err != nil {
		return nil, err
	}
	if did.Later, err = unary(ctx, client); err != nil {
		return nil, fmt.Errorf("with what was stored: %w", err)
	}
	token, err := reopened.CurrentToken()
	if err != nil {
		return nil, err
	}
	did.Hash, did.Preimage = token.PaymentHash.String(), token.Preimage.String()
	did.PaidMsat = uint64(token.AmountPaid)
	return did, nil
}

// A client whose calls are paid for by themselves.
func dial(at *places, lnd *lndclient.LndServices, store l402.Store) (grpc_testing.TestServiceClient, error) {
	transport := insecure.NewCredentials()
	if at.ca != "" {
		var err error
		if transport, err = credentials.NewClientTLSFromFile(at.ca, "localhost"); err != nil {
			return nil, err
		}
	}
	payer := l402.NewInterceptor(lnd, store, patience, maxCost, maxFee, at.ca == "")
	connection, err := grpc.NewClient(
		at.gateway,
		grpc.WithTransportCredentials(transport),
		grpc.WithUnaryInterceptor(payer.UnaryInterceptor),
		grpc.WithStreamInterceptor(payer.StreamInterceptor),
	)
	if err != nil {
		return nil, err
	}
	return grpc_testing.NewTestServiceClient(connection), nil
}

func unary(ctx context.Context, client grpc_testing.TestServiceClient) (int, error) {
	answer, err := client.UnaryCall(ctx, &grpc_testing.SimpleRequest{ResponseSize: sizes[0]})
	if err != nil {
		return 0, err
	}
	return len(answer.Payload.Body), nil
}

func streamed(ctx context.Context, client grpc_testing.TestServiceClient) ([]int, error) {
	stream, err := client.StreamingOutputCall(ctx, asking(sizes...))
	if err != nil {
		return nil, err
	}
	return received(stream.Recv)
}

// Asks for each answer when the one before has come.
func conversed(ctx context.Context, client grpc_testing.TestServiceClient) ([]int, error) {
	stream, err := client.FullDuplexCall(ctx)
	if err != nil {
		return nil, err
	}
	var got []int
	for _, size := range sizes {
		if err := stream.Send(asking(size)); err != nil {
			return nil, err
		}
		answer, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		got = append(got, len(answer.Payload.Body))
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	rest, err := received(stream.Recv)
	return append(got, rest...), err
}

func asking(sizes ...int32) *grpc_testing.StreamingOutputCallRequest {
	request := &grpc_testing.StreamingOutputCallRequest{}
	for _, size := range sizes {
		answer := &grpc_testing.ResponseParameters{Size: size}
		request.ResponseParameters = append(request.ResponseParameters, answer)
	}
	return request
}

func received(receive func() (*grpc_testing.StreamingOutputCallResponse, error)) ([]int, error) {
	var got []int
	for {
		answer, err := receive()
		if err == io.EOF {
			return got, nil
		}
		if err != nil {
			return got, err
		}
		got = append(got, len(answer.Payload.Body))
	}
}
